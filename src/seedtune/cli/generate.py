"""Generate completions: prompts from the command line, or one per line from standard input."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..errors import DataError
from .options import MODEL, add_flags, given, refuse_unknown

HELP = "generate completions"
_FLAGS = (
    "max_prompt_length max_completion_length temperature top_p top_k min_p repetition_penalty stop_strings "
    "generation_kwargs generation_batch_size chat_template_kwargs skip_special_tokens model_revision "
    "trust_remote_code dtype attn_implementation model_init_kwargs device threads seed"
).split()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument("prompts", metavar="PROMPT", nargs="*", default=[], help="the prompts")
    parser.add_argument("--base", metavar="MODEL", help="the base model of a patch or a run, if it is elsewhere now")
    parser.add_argument("--raw", action="store_true", help="no chat template: continue the text as it is")
    add_flags(parser, only=_FLAGS)


def run(parsed: argparse.Namespace, rest: Sequence[str]) -> int:
    from ..training import factory
    from ..training.recipe import resolve
    from .model_ref import own_settings, resolve_model

    refuse_unknown(parsed, rest)
    flags = given(parsed)
    own = {k: v for k, v in own_settings(parsed.model, flags).items() if k in _FLAGS}
    args = resolve({}, {**own, **flags})
    asked = parsed.prompts or ([] if sys.stdin.isatty() else [line.rstrip("\n") for line in sys.stdin if line.strip()])
    if not asked or not all(text.strip() for text in asked):
        raise DataError("there is no prompt: give one on the command line, or one per line on standard input.")
    with resolve_model(parsed.model, parsed.base) as target:
        engine = factory.inference_engine(target.model, args)
    chat = bool(engine.tokenizer.chat_template) and not parsed.raw
    contents = [[{"role": "user", "content": text}] if chat else text for text in asked]
    prompts = engine.encode(contents, args.max_completion_length)
    longest = max(len(p.ids) for p in prompts) + args.max_completion_length
    rows = args.generation_batch_size or engine.rows_that_fit(longest)
    sampling = factory.sampling(args, rows)
    chunk = args.chunk_size or 2 * rows
    for first in range(0, len(prompts), chunk):
        part = slice(first, first + chunk)
        for text, completion in zip(asked[part], engine.generate(prompts[part], sampling, args.seed), strict=True):
            if len(asked) > 1:
                print(f"> {text}")
            print(completion.text, flush=True)
    return 0

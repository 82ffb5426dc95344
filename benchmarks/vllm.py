"""Members per second of three engines, in one process: SmolLM2-135M, bfloat16, 4 prompts per member, up to 64 tokens.

* hf_fullrank, hf_lowrank, vllm_fullrank, vllm_lowrank: members per second, updates left out; 32 low-rank members (all
  in one batch) and 4 full-rank ones (one after another).
* vllm_perturb_seconds: perturbing vLLM's weights, and restoring them, per full-rank member.
* vllm_following_over_plain: tokens per second of vLLM whose weights follow its members (kept beside their packed form,
  and packed again), over those of an unmodified vLLM (the mean of one before and one after), at 32 rows that do
  not stop before 64 tokens.
* same_text_float32, same_text_bfloat16: of 20 prompts, the share at which a full-rank member writes the same text by
  both engines (up to 64 tokens), and same_tokens_...: the share of tokens before the first that differs.

Run in the environment of `make test-vllm`: .venv-vllm/bin/python benchmarks/vllm.py
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")

sys.path.append(sys.path.pop(0))  # this file has the package's name

from common import arguments, report
from seedtune.config.es_config import ESConfig
from seedtune.engines import loading
from seedtune.engines.base import Engine, Sampling
from seedtune.engines.vllm.startup import hide_numba
from seedtune.es.population import CENTER, Member, Population
from seedtune.tasks import conciseness, countdown
from seedtune.training import factory
from vllm import LLM, SamplingParams

LENGTH, ROUNDS = 64, 3
PROMPTS = conciseness.TASK.train
KINDS: dict[str, dict[str, Any]] = {
    "fullrank": {"sigma": 0.001},
    "lowrank": {"perturbation": "lowrank", "sigma": 0.01, "scope": "linear"},
}


def engine(name: str, kind: str, **options: Any) -> Engine:
    args = ESConfig(engine=name, population_size=32, antithetic=True, **KINDS[kind], **options)
    return factory.engine(loading.EMBEDDED, None, args)


def members_per_second(it: Engine, count: int) -> float:
    prompts = it.encode([row["prompt"] for row in PROMPTS[:4]], LENGTH)

    def round_(t: int) -> float:
        members = Population(32, antithetic=True).ask(t)[:count]
        started = time.perf_counter()
        for group in [members] if it.mixes_members else [[m] for m in members]:
            it.set_members([m for m in group for _ in prompts])
            it.generate([p for _ in group for p in prompts], Sampling(LENGTH, rows_at_once=128), seed=t)
        return count / (time.perf_counter() - started)

    round_(1)
    return statistics.median(round_(t) for t in range(2, 2 + ROUNDS))


def perturb_seconds(it: Any) -> float:
    def there_and_back(t: int) -> float:
        started = time.perf_counter()
        it._do("set_members", [Member(t, 0, 0, 1)])
        it._do("set_members", [CENTER])
        return time.perf_counter() - started

    there_and_back(1)
    return statistics.median(there_and_back(t) for t in range(2, 17))


def agreement(dtype: str) -> dict[str, float]:
    """Between the two engines, of a full-rank member's greedy completions."""
    asked = [row["prompt"] for row in [*PROMPTS, *countdown.problems(20, seed=1)]][:20]

    def completions(name: str) -> list[Any]:
        it = engine(name, "fullrank", dtype=dtype)
        prompts = it.encode(asked, LENGTH)
        it.set_members([Member(1, 0, 0, 1)] * len(prompts))
        return [c.ids for c in it.generate(prompts, Sampling(LENGTH), seed=1)]

    pairs = [*zip(completions("hf"), completions("vllm"), strict=True)]
    shared = [
        next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))) for a, b in pairs
    ]
    return {
        f"same_text_{dtype}": statistics.mean(a == b for a, b in pairs),
        f"same_tokens_{dtype}": sum(shared) / sum(len(a) for a, _ in pairs),
    }


def tokens_per_second(llm: LLM) -> float:
    how = SamplingParams(temperature=0, max_tokens=LENGTH, ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": [2 + n + 7 * k for k in range(40)]} for n in range(32)]

    def round_() -> float:
        started = time.perf_counter()
        llm.generate(prompts, how, use_tqdm=False)
        return 32 * LENGTH / (time.perf_counter() - started)

    round_()
    return statistics.median(round_() for _ in range(ROUNDS))


def plain_tokens_per_second() -> float:
    return tokens_per_second(
        LLM(
            model=loading.pretrained_name(loading.EMBEDDED), dtype="bfloat16", enforce_eager=True,
            enable_prefix_caching=False, max_num_seqs=128, skip_tokenizer_init=True, disable_log_stats=True,
        )
    )  # fmt: skip


if __name__ == "__main__":
    args = arguments(__doc__)
    hide_numba()
    before = plain_tokens_per_second()
    results = {}
    it: Any = engine("vllm", "fullrank")
    it._do("seat", [Member(1, 0, 0, 1)])
    following = tokens_per_second(it._llm)
    results["vllm_perturb_seconds"] = perturb_seconds(it)
    results["vllm_fullrank"] = members_per_second(it, 4)
    del it
    results["vllm_tokens_per_second"] = statistics.mean([before, plain_tokens_per_second()])
    results["vllm_following_over_plain"] = following / results["vllm_tokens_per_second"]
    results["vllm_lowrank"] = members_per_second(engine("vllm", "lowrank"), 32)
    results["hf_fullrank"] = members_per_second(engine("hf", "fullrank"), 4)
    results["hf_lowrank"] = members_per_second(engine("hf", "lowrank"), 32)
    for dtype in ("float32", "bfloat16"):
        results |= agreement(dtype)
    report(results, args.json)

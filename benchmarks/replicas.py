"""Two Ray replicas of one thread each against one local replica of one thread: the demo's members, chunks of 32 rows;
and what crosses the network for models of two sizes.

* two_over_one: members per second of the fleet, over those of the one replica; medians over iterations but the first.
* bytes_sent, bytes_received: to and from the busier replica, in the iteration that comes nearest the limit; the columns
  that reward functions use are among them.
* bytes_limit: 2 KB + 64 B per member + the text of the iteration's prompts and completions; bytes_over_limit:
  both ways, over that.
* same_journal: 1 when both wrote the same journal.
* ..._1m: the same for a random model of 1 M parameters on one replica, which decodes all (`--only-1m`: only that).
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from common import arguments, report

RECIPE, STEPS, MEMBERS = "benchmarks/data/conciseness.yaml", 4, 32
FLEET = ["--fleet", "ray", "--replicas", "2", "--replica_cpus", "1"]
TEMPLATE = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"


def run(folder: Path, *flags: str) -> list[dict[str, float]]:
    """Metrics of the iterations of a run."""
    command = [sys.executable, "-m", "seedtune.cli.main", "train", "--config", RECIPE, "--output_dir", str(folder)]
    command += ["--max_steps", str(STEPS), "--eval_steps", "0", "--drift_samples", "0", "--threads", "1"]
    command += ["--chunk_size", "32", "--generation_batch_size", "32", "--stop_at", "eval/answered < 0"]
    subprocess.run([*command, "--log_completions", *flags], check=True, stdout=sys.stderr)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "reward" in line]


def seconds(lines: list[dict[str, float]]) -> float:
    return statistics.median(sum(v for k, v in line.items() if k.startswith("time/")) for line in lines[1:])


def traffic(folder: Path, lines: list[dict[str, float]], suffix: str) -> dict[str, float]:
    """Bytes of the iteration that comes nearest its limit; the first counts the evaluation before it, too."""
    worst: dict[str, float] = {}
    for t, line in list(enumerate(lines, 1))[1:]:
        rows = [json.loads(row) for row in (folder / "completions" / f"train-{t}.jsonl").read_text().splitlines()]
        prompts = {row["prompt_index"]: json.dumps(row["prompt"]) for row in rows}
        text = sum(len(said.encode()) for said in [*prompts.values(), *(row["completion"] for row in rows)])
        limit = 2000 + 64 * MEMBERS + text
        sent, received = line["fleet/bytes_sent"], line["fleet/bytes_received"]
        if (sent + received) / limit > worst.get(f"bytes_over_limit{suffix}", 0.0):
            worst = {
                f"bytes_sent{suffix}": sent,
                f"bytes_received{suffix}": received,
                f"bytes_limit{suffix}": float(limit),
                f"bytes_over_limit{suffix}": (sent + received) / limit,
            }
    return worst


def small_model(folder: Path) -> float:
    """Write a random Llama with a token per byte; its parameters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(["<end>", *alphabet])}, merges=[]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), ByteLevel()
    raw.add_special_tokens(["<end>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>", chat_template=TEMPLATE)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 7, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape, bos_token_id=None, eos_token_id=0))
    model.save_pretrained(folder)
    return float(model.num_parameters())


def one_million(folder: Path) -> dict[str, float]:
    parameters = small_model(folder / "model")
    lines = run(folder / "run", "--model_name_or_path", str(folder / "model"), *FLEET, "--replicas", "1")
    return {"parameters_1m": parameters, **traffic(folder / "run", lines, "_1m")}


def embedded(folder: Path) -> dict[str, float]:
    one, two = run(folder / "one"), run(folder / "two", *FLEET)
    journals = [(folder / name / "journal.jsonl").read_bytes() for name in ("one", "two")]
    return {
        "two_over_one": seconds(one) / seconds(two),
        "members_per_second_one": MEMBERS / seconds(one),
        **traffic(folder / "two", two, ""),
        "same_journal": float(journals[0] == journals[1]),
    }


if __name__ == "__main__":
    small = "--only-1m" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--only-1m"]
    args = arguments(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        results = {} if small else embedded(Path(folder) / "135m")
        results |= one_million(Path(folder) / "1m")
    report(results, args.json)

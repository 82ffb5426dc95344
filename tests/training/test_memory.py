"""What a low-rank run holds in memory, drift included, in copies of its bfloat16 model."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

#: Live weights 1, the float32 master 2, packed weights 1: 4, and 0.4 for all else. The copy of the base is on disk: in
#: memory it would be one more.
MOST = 4.5

CODE = """
import json, sys
from pathlib import Path
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from seedtune import ESConfig, ESTrainer
from seedtune.report.progress import Progress
from tiny import tiny_tokenizer

def memory(name):
    return next(int(line.split()[1]) << 10 for line in Path("/proc/self/status").open() if line.startswith(name + ":"))

def run(name, hidden):
    config = LlamaConfig(vocab_size=len(tiny_tokenizer()), hidden_size=hidden, intermediate_size=3 * hidden,
                         num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=64,
                         bos_token_id=None, eos_token_id=0, pad_token_id=1)
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.to_empty(device="cpu")
    model.model.rotary_emb.__init__(config)
    for p in model.parameters():
        p.data.normal_(0, 0.02) if p.dim() > 1 else p.data.fill_(1)
    args = ESConfig(output_dir=f"{sys.argv[1]}/{name}", max_steps=1, population_size=2, perturbation="lowrank",
                    sigma=0.01, max_completion_length=4, reward_workers=0, drift_samples=1, device="cpu",
                    save_only_model=True)
    ESTrainer(model, lambda completions, **_: [float(n) for n in range(len(completions))], args, [{"prompt": "one"}],
              processing_class=tiny_tokenizer(), progress=Progress()).train()
    return sum(p.nbytes for p in model.parameters())

run("warm", 32)
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
size = run("large", 1024)
print(json.dumps({"size": size, "peak": memory("VmHWM") - before}))
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="reads what Linux says of memory")
def test_a_low_rank_run_with_drift_holds_four_copies_of_its_model(tmp_path):
    tests = os.path.dirname(os.path.dirname(__file__))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")])}
    environment["MALLOC_MMAP_THRESHOLD_"] = "131072"  # else glibc keeps what was freed, up to half a copy by chance
    done = subprocess.run([sys.executable, "-c", CODE, str(tmp_path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["size"] > 150e6
    assert found["peak"] < MOST * found["size"]

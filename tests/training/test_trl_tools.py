"""Conversations are those that TRL's GRPOTrainer holds with the same tools: its arguments, its messages, its limits."""

from __future__ import annotations

import pytest

from runs import config
from seedtune import ESTrainer
from seedtune.report.progress import Progress
from talking import add, ask, talking_tokenizer
from tiny import tiny_llama

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's and torch's own

ROWS = [
    {"prompt": ask(text), "start": n}
    for n, text in enumerate(("one", "two and", "three", "four is", "5", "six", "seven", "eight"))
]


class Counter:
    """The same class for both trainers."""

    def reset(self, start=0, **_):
        self.count = start
        return f" from {start}"

    def add(self, a: int, b: int = 0) -> str:
        """Count on.

        Args:
            a: how far
            b: and further
        """
        self.count += a
        if a % 3 == 0:
            raise ValueError("not a multiple of three")
        return str(self.count)

    def get_reward(self) -> float:
        return float(self.count)


def heard(said):
    """A reward function that writes down what it is given."""

    def listen(completions, completion_ids, start, **_):
        for messages, ids, n in zip(completions, completion_ids, start, strict=True):
            said[n] = [(m["role"], m["content"]) for m in messages], list(ids)
        return [float(len(messages)) for messages in completions]

    return listen


@pytest.mark.parametrize("given", [{"tools": [add]}, {"environment_factory": Counter}])
@pytest.mark.parametrize(("length", "rounds"), [(64, None), (64, 1), (40, 3), (200, 2)])
def test_both_trainers_hold_the_same_conversations(tmp_path, monkeypatch, given, length, rounds):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    ours, theirs = {}, {}

    def model():
        made = tiny_llama(context=512)
        made.lm_head.weight.data[0] *= 3  # it ends turns more often
        return made

    settings = config(tmp_path, max_completion_length=length, max_tool_calling_iterations=rounds)
    ESTrainer(
        model(), heard(ours), settings, ROWS, processing_class=talking_tokenizer(), progress=Progress(), **given
    ).evaluate()
    args = trl.GRPOConfig(
        output_dir=str(tmp_path / "grpo"), max_steps=1, per_device_train_batch_size=16, num_generations=2, top_k=1,
        max_completion_length=length, max_tool_calling_iterations=rounds, report_to="none", use_cpu=True, bf16=False,
        save_strategy="no",
    )  # fmt: skip
    trl.GRPOTrainer(
        model(), heard(theirs), args, datasets.Dataset.from_list(ROWS), processing_class=talking_tokenizer(), **given
    ).train()
    assert ours.keys() == theirs.keys() == set(range(8))
    assert {n: said for n, (said, _) in ours.items()} == {n: said for n, (said, _) in theirs.items()}
    for n in ours:  # here without the token that ended the last turn
        assert theirs[n][1] in (ours[n][1], [*ours[n][1], 0])
    assert any(role == "tool" for said, _ in ours.values() for role, _ in said)

"""The examples with tools run, on a tiny model; their tools, games and rewards do what they say."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from tiny import save_tiny, tiny_tokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def model(tmp_path):
    folder = save_tiny(tmp_path / "model", context=8192)
    tokenizer = tiny_tokenizer().__class__.from_pretrained(folder)
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    return str(folder)


SHORT = {
    "max_steps": 1, "population_size": 2, "max_completion_length": 4, "prompts_per_member": 2, "prompts_per_step": 2,
    "guard": False, "load_best_model_at_end": False, "drift_samples": 0, "dtype": "float32",
}  # fmt: skip


@pytest.mark.parametrize("name", ["calculator_tool", "guess_number"])
def test_an_example_runs(model, tmp_path, name):
    example = runpy.run_path(str(EXAMPLES / f"{name}.py"))
    trainer = example["main"](model, output_dir=str(tmp_path / "run"), **SHORT)
    assert trainer.run.step == 1
    assert "eval/tools/call_frequency" in trainer.run.history[0]
    assert any("ChatML template of ours" in remark for remark in trainer.engine.remarks)


def test_the_calculator_computes_and_no_more():
    example = runpy.run_path(str(EXAMPLES / "calculator_tool.py"))
    assert example["calculator"]("12 * 7 + 1 - 3") == "82"
    for hostile in ("__import__('os').getcwd()", "9 ** 9 ** 9", "a", "1 / 2", "(lambda: 1)()"):
        with pytest.raises((ValueError, SyntaxError)):
            example["calculator"](hostile)
    rows = example["rows"](60, seed=1)
    assert len({row["prompt"][-1]["content"] for row in rows}) > 55
    said = [[{"content": text}] for text in ("It is 12.", "The answer is 12", "It is 112.", "12 is it")]
    assert example["correct"](said, answer=["12"] * 4) == [1, 1, 0, 0]


def test_the_number_is_found_by_feedback():
    example = runpy.run_path(str(EXAMPLES / "guess_number.py"))
    game = example["GuessNumber"]()
    game.reset(game=1)
    game.secret = 5
    assert [game.guess(n) for n in (4, 6)] == ["The secret number is larger.", "The secret number is smaller."]
    assert game.get_reward() == 0
    assert (game.guess(5), game.get_reward()) == ("Right.", 1)
    results = [m["content"] for m in example["PROMPT"] if m["role"] == "tool"]
    assert results.count("Right.") == 2

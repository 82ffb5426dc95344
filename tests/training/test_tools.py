"""Runs whose models call tools: journals, rewards, metrics, resume, and what is refused."""

from __future__ import annotations

import dataclasses
import json

import pytest

from runs import config, plain, trainer
from seedtune import ESTrainer
from seedtune.data.dataset import episodes
from seedtune.errors import ConfigError, DataError, NotFiniteError, RewardError
from seedtune.evaluation.evaluate import evaluate
from seedtune.report.progress import Progress
from seedtune.training.factory import eval_spec
from seedtune.training.recipe import data_and_rewards, resolve
from seedtune.utils.files import read_lines
from talking import Seen, add, ask, results, talking_tokenizer
from tiny import tiny_llama, tiny_tokenizer

ROWS = [{"prompt": ask(text), "wanted": n} for n, text in enumerate(("one", "two and", "three", "four is"))]


def made(tmp_path, rows=ROWS, reward_funcs=results, tokenizer=None, model=None, **options):
    names = ("tools", "environment_factory", "rollout_func", "eval_dataset", "eval_funcs")
    given = {k: options.pop(k) for k in names if k in options}
    settings = {"max_completion_length": 48, "stop_strings": ["e", "a", "0"], "max_tool_calling_iterations": 3}
    return ESTrainer(
        model=model or tiny_llama(context=512),
        reward_funcs=reward_funcs,
        args=config(tmp_path, **{**settings, **options}),
        train_dataset=rows,
        processing_class=tokenizer or talking_tokenizer(),
        progress=Progress(),
        **given,
    )


def journal(run):
    """Without the chain and what names the machine."""
    lines = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("software", "chain")} for line in lines]


def rows_of(run, name):
    return read_lines(run / "completions" / f"{name}.jsonl")


@pytest.mark.parametrize("low_rank", [False, True])
def test_a_run_with_tools_writes_conversations_and_repeats(tmp_path, low_rank):
    how = {"perturbation": "lowrank", "rank": 2, "antithetic": True} if low_rank else {}
    found = []
    for name, workers, chunk in (("here", 0, None), ("two", 2, None), ("small", 1, 4)):
        t = made(
            tmp_path / name, tools=[add], reward_workers=workers, chunk_size=chunk, log_completions=True,
            generation_batch_size=3, **how,
        )  # fmt: skip
        t.train()
        run = tmp_path / name / "run"
        found.append((journal(run), rows_of(run, "train-3")))
    (whole, rows), (again, rows_again), (_, small) = found
    assert [line for line in whole if line.get("kind") != "header"] == [
        line for line in again if line.get("kind") != "header"
    ]
    assert rows == rows_again
    lengths = {len(row["messages"]) for row in rows}
    assert len(lengths) > 1
    assert max(lengths) > 2
    for row in rows:
        roles = [m["role"] for m in row["messages"]]
        assert roles[0] == "assistant"
        assert set(roles) <= {"assistant", "tool"}
        results_of_row = [int(m["content"]) for m in row["messages"] if m["role"] == "tool"]
        assert row["reward"] == pytest.approx(sum(results_of_row) / 1000)
        assert row["completion"] == row["messages"][-1]["content"] or roles[-1] == "tool"
    calls = [sum(m["role"] == "tool" for m in row["messages"]) for row in small]
    line = next(line for line in t.run.history if line["step"] == 3 and "reward" in line)
    assert line["tools/call_frequency"] >= sum(calls) / len(calls) > 0
    assert line["tools/failure_frequency"] == 0
    assert line["completions/mean_length"] == pytest.approx(sum(row["tokens"] for row in small) / len(small))


def test_a_run_with_environments_is_resumed_to_the_same_bits(tmp_path):
    def run(name, **options):
        return made(tmp_path / name, environment_factory=Seen, reward_funcs=None, antithetic=True, **options)

    whole = run("whole", max_steps=4)
    whole.train()
    run("cut", max_steps=2).train()
    resumed = run("cut", max_steps=4)
    resumed.train(resume_from_checkpoint=True)
    lines = [journal(tmp_path / name / "run") for name in ("whole", "cut")]
    assert lines[0] == lines[1]
    assert [r.name for r in whole.rewards] == ["Seen"]
    assert "rewards/Seen/mean" in whole.run.history[-1] or "eval/rewards/Seen/mean" in whole.run.history[-1]


def test_pairs_meet_the_same_and_others_meet_something_else(tmp_path):
    t = made(tmp_path, environment_factory=Seen, reward_funcs=None, antithetic=True, log_completions=True)
    t.train()
    rows = rows_of(tmp_path / "run", "train-1")
    told = {(row["member"], row["prompt_index"]): row["prompt"][0]["content"] for row in rows}
    assert all(told[0, p] == told[1, p] and told[2, p] == told[3, p] for p in range(4))
    assert len({text for (m, p), text in told.items() if m in (0, 2)}) > 5
    assert told[0, 0] != rows_of(tmp_path / "run", "train-2")[0]["prompt"][0]["content"]
    first, last = (rows_of(tmp_path / "run", name) for name in ("eval-0", "eval-3"))
    assert [row["prompt"] for row in first] == [row["prompt"] for row in last]


def test_reward_functions_see_environments_as_their_last_call_left_them(tmp_path):
    def of_environment(environments, completions, prompts, log_extra, **_):
        log_extra("sum", [e.sum for e in environments])
        assert all(p[-1]["content"].endswith(f" {e.drawn}") for p, e in zip(prompts, environments, strict=True))
        return [e.wanted + e.sum / 1000 for e in environments]

    for workers in (0, 1):
        t = made(
            tmp_path / str(workers), environment_factory={"seen": Seen}, reward_funcs=of_environment,
            rows=[{**row, "environment": "seen"} for row in ROWS], reward_workers=workers, max_steps=1,
            log_completions=True, max_completion_length=120,
        )  # fmt: skip
        t.train()
        rows = rows_of(tmp_path / str(workers) / "run", "train-1")
        assert any(row["sum"] for row in rows)
        for row in rows:
            sums = [int(m["content"]) for m in row["messages"] if m["role"] == "tool"]
            if "tool_calls" not in row["messages"][-1]:  # else there may have been no room for the last result
                assert row["sum"] == (sums[-1] if sums else 0)
            assert row["of_environment"] == pytest.approx(row["prompt_index"] + row["sum"] / 1000)


def test_a_dataset_may_be_missing_where_there_are_environments(tmp_path):
    t = made(tmp_path, rows=None, environment_factory=Seen, reward_funcs=None, prompts_per_step=3, max_steps=1)
    t.train()
    assert len(t.prompts.train) == 3
    assert episodes(None) == [{"prompt": ask("")}] * 64
    with pytest.raises(DataError, match="train_dataset is missing"):
        made(tmp_path, rows=None, tools=[add])


def test_several_samples_of_a_prompt_have_episodes_of_their_own(tmp_path):
    t = made(
        tmp_path, environment_factory=Seen, reward_funcs=None, num_generations=2, temperature=1.0, max_steps=1,
        log_completions=True,
    )  # fmt: skip
    t.train()
    rows = rows_of(tmp_path / "run", "train-1")
    told = {(row["member"], row["prompt_index"], row["sample"]): row["prompt"][0]["content"] for row in rows}
    assert sum(told[m, p, 0] != told[m, p, 1] for m in range(4) for p in range(4)) > 8


@pytest.mark.parametrize("most", [0, 1, 2])
def test_the_model_calls_tools_so_often_at_most(tmp_path, most):
    t = made(tmp_path, tools=[add], max_tool_calling_iterations=most, max_steps=1, log_completions=True)
    t.train()
    rows = rows_of(tmp_path / "run", "train-1")
    assert max(sum(m["role"] == "tool" for m in row["messages"]) for row in rows) == most


def test_results_for_which_there_is_no_room_are_dropped(tmp_path, caplog):
    def long(a: int, b: int = 0) -> str:
        """Say much.

        Args:
            a: the first
            b: the second
        """
        return "x" * 1000

    t = made(tmp_path, tools=[long], tokenizer=talking_tokenizer("long"), max_steps=1, log_completions=True)
    t.train()
    rows = rows_of(tmp_path / "run", "train-1")
    assert {len(row["messages"]) for row in rows} == {1}
    assert any("tool_calls" in row["messages"][0] for row in rows)
    assert all(row["tokens"] <= 48 for row in rows)
    dropped = sum("tool_calls" in row["messages"][0] and not row["truncated"] for row in rows) / len(rows)
    line = next(line for line in t.run.history if "reward" in line)
    assert line["tools/no_room_frequency"] == dropped > 0
    assert caplog.text.count("a conversation ended as no room was left") == 1


class Talkative(Seen):
    """Says much to some."""

    def reset(self, wanted=0, **_):
        return super().reset(wanted) + " x" * (600 if wanted % 2 else 3)


@pytest.mark.parametrize("low_rank", [False, True])
def test_an_environment_that_says_too_much_ends_its_own_conversation(tmp_path, caplog, low_rank):
    """Members, seeds and unscored samples stay with their rows."""
    how = {"perturbation": "lowrank", "rank": 2, "antithetic": True} if low_rank else {}
    found = []
    for name, chunk in (("whole", None), ("alone", 1)):
        caplog.clear()
        t = made(
            tmp_path / name, environment_factory=Talkative, reward_funcs=None, log_completions=True, chunk_size=chunk,
            num_generations=2, temperature=1.0, max_steps=1, drift_samples=2, **how,
        )  # fmt: skip
        t.train()
        assert caplog.text.count("a conversation ended as no room was left") == 1
        found.append([rows_of(tmp_path / name / "run", file) for file in ("train-1", "eval-1")])
        assert t.run.history[0]["eval/tools/no_room_frequency"] == 0.5
        assert t.run.history[-1]["eval/kl"] > 0
    assert found[0] == found[1]
    for row in found[0][0]:
        assert row["prompt"][-1]["content"].count(" x") == (600 if row["prompt_index"] % 2 else 3)
        if row["prompt_index"] % 2:
            assert (row["messages"], row["tokens"], row["truncated"]) == (
                [{"role": "assistant", "content": ""}],
                0,
                True,
            )
            assert 0 <= row["Talkative"] < 0.1
        else:
            assert row["tokens"] > 0


def test_environments_may_say_too_much_to_all_and_cut_prompts_go_on(tmp_path, caplog):
    rows = ROWS[1::2]
    t = made(tmp_path / "all", rows, environment_factory=Talkative, reward_funcs=None, max_steps=1)
    assert t.evaluate()["eval/tools/no_room_frequency"] == 1
    t = made(tmp_path / "cut", rows, environment_factory=Talkative, reward_funcs=None, max_prompt_length=400)
    caplog.clear()
    assert t.evaluate()["eval/tools/no_room_frequency"] == 0
    assert not caplog.text, "nothing is said of each"
    with pytest.raises(DataError, match=r"more than the model's context of 512"):
        made(tmp_path, [{"prompt": ask(" x" * 600)}], tools=[add])


@pytest.mark.parametrize("in_rounds", [False, True])
def test_a_conversation_goes_on_with_the_room_that_is_left(tmp_path, caplog, monkeypatch, in_rounds):
    """Less of the context than max_completion_length, but not nothing; and fewer rows are decoded at once then."""

    class Chatty(Seen):
        def reset(self, wanted=0, **_):
            return super().reset(wanted) + " x" * (225 if wanted % 2 else 3)

    t = made(
        tmp_path, environment_factory=Chatty, reward_funcs=None, max_steps=1, log_completions=True, stop_strings=None,
        generation_batch_size=4, reward_workers=0,
    )  # fmt: skip
    t.engine.texts.stops.clear()
    t.engine.decoder.stops = t.engine.decoder.stops[:0]
    if in_rounds:
        t.engine.ways = dataclasses.replace(t.engine.ways, decoder=None)
    asked = []

    def fewer(rows, tokens, planned):
        asked.append((rows, tokens, planned))
        return 2

    monkeypatch.setattr(t.engine, "fewer_rows", fewer)
    t.train()
    rows = rows_of(tmp_path / "run", "train-1")
    told = {row["prompt_index"] % 2: row["tokens"] for row in rows}
    assert told[0] == 48
    assert 0 < told[1] < 48
    assert all(row["truncated"] for row in rows)
    assert not caplog.text
    rows_at_once, tokens, planned = asked[0]
    assert rows_at_once == 4
    assert tokens == 512 > planned


def test_preflight_and_evaluate_talk_too(tmp_path):
    t = made(tmp_path, tools=[add], rows=[{"prompt": ask(f"row {n}")} for n in range(8)])
    assert t.preflight().completions > 0
    during = t.evaluate()
    alone = evaluate(t.engine, eval_spec(t.args, samples=2), t.prompts.eval, results, tools=t.tools).estimates
    names = [name for name in during if name.startswith("eval/tools/")]
    assert len(names) == 4
    assert during["eval/tools/call_frequency"] > 0
    assert all(alone[name.removeprefix("eval/")].mean == during[name] for name in names)
    assert alone["sampled/tools/call_frequency"].count == 8


def test_what_does_not_go_with_tools_is_said(tmp_path):
    with pytest.raises(DataError, match="with tools, prompts are conversations"):
        made(tmp_path, tools=[add], rows=[{"prompt": "text"}])
    with pytest.raises(DataError, match="the chat template of this model knows no tools"):
        made(tmp_path, tools=[add], tokenizer=tiny_tokenizer())
    with pytest.raises(DataError, match="a row has environment=None"):
        made(tmp_path, environment_factory={"seen": Seen})
    with pytest.raises(RewardError, match="reward_funcs is empty"):
        made(tmp_path, tools=[add], reward_funcs=None)
    with pytest.raises(ConfigError, match="tools are called between turns that are decoded"):
        made(tmp_path, tools=[add], reward_funcs="log_likelihood", rows=[{"prompt": "a", "completion": "b"}])


def test_settings_of_tools_without_tools_do_nothing_and_say_so(tmp_path, caplog):
    trainer(tmp_path, max_tool_calling_iterations=3, tool_timeout=5)
    assert "max_tool_calling_iterations, tool_timeout: ignored" in caplog.text


def test_a_rollout_func_makes_the_completions_of_a_member_and_columns(tmp_path):
    seen = []

    def two_turns(prompts, trainer):
        first = trainer.generate_completions(prompts)
        again = trainer.generate_completions([f["prompt_ids"] + f["completion_ids"] + [7, 7] for f in first])
        seen.append([f["text"] for f in first])
        return {
            "prompt_ids": [f["prompt_ids"] for f in first],
            "completion_ids": [
                f["completion_ids"] + [7, 7] + a["completion_ids"] for f, a in zip(first, again, strict=True)
            ],
            "logprobs": [f["logprobs"] + [0.0, 0.0] + a["logprobs"] for f, a in zip(first, again, strict=True)],
            "env_mask": [
                [1] * len(f["completion_ids"]) + [0, 0] + [1] * len(a["completion_ids"])
                for f, a in zip(first, again, strict=True)
            ],
            "length_of_first": [len(f["completion_ids"]) for f in first],
        }

    def by_length(completions, length_of_first, completion_logprobs, completion_ids, **_):
        assert all(len(p) in (len(i), len(i) + 1) for p, i in zip(completion_logprobs, completion_ids, strict=True))
        return [n / 10 + len(c) / 1000 for n, c in zip(length_of_first, completions, strict=True)]

    found = []
    for name, how in (("full", {}), ("lowrank", {"perturbation": "lowrank", "rank": 1}), ("again", {})):
        seen.clear()
        t = trainer(
            tmp_path / name, reward_funcs=by_length, rollout_func=two_turns, max_steps=1, log_completions=True,
            max_completion_length=6, **how,
        )  # fmt: skip
        t.train()
        rows = read_lines(tmp_path / name / "run" / "completions" / "train-1.jsonl")
        found.append([row["reward"] for row in rows])
        assert len(seen) == 1 + 4 + 1  # the center, four members, the center
        assert len({tuple(texts) for texts in seen}) > 2
        assert all(row["tokens"] <= 13 for row in rows)
    assert found[0] == found[2] != found[1]
    with pytest.raises(ConfigError, match="within rollout_func only"):
        t.generate_completions(["x"])
    with pytest.raises(ConfigError, match="this trainer has none"):
        trainer(tmp_path / "none").generate_completions(["x"])


@pytest.mark.parametrize(
    ("returned", "why"),
    [
        (None, "is a NoneType: as in TRL"),
        ({"prompt_ids": [[1]] * 4, "completion_ids": [[1]] * 4}, "lacks 'logprobs'"),
        ({"prompt_ids": [[1]] * 4, "completion_ids": [[1]], "logprobs": None}, "returned 1 completion_ids for 4"),
        ({"prompt_ids": [[1]] * 4, "completion_ids": [[1]] * 4, "logprobs": None, "completions": [1] * 4}, "rename it"),
        ({"prompt_ids": [[1]] * 4, "completion_ids": [[1]] * 4, "logprobs": None, "env_mask": [[]] * 4}, "an env_mask"),
    ],
)
def test_what_a_rollout_func_must_return_is_said(tmp_path, returned, why):
    with pytest.raises(RewardError, match=why):
        trainer(tmp_path, reward_funcs=plain, rollout_func=lambda prompts, trainer: returned).train()


def test_a_rollout_func_that_raises_is_an_error(tmp_path):
    def broken(prompts, trainer):
        raise NotFiniteError("no numbers")

    with pytest.raises(NotFiniteError, match="no numbers"):  # from which a run recovers
        trainer(tmp_path / "a", reward_funcs=plain, rollout_func=broken).train()
    with pytest.raises(RewardError, match="rollout_func raised ZeroDivisionError"):
        trainer(tmp_path, reward_funcs=plain, rollout_func=lambda prompts, trainer: 1 / 0).train()
    with pytest.raises(ConfigError, match="rollout_func makes completions itself"):
        made(tmp_path / "b", tools=[add], rollout_func=print)


def test_the_command_line_takes_tools_and_environments_by_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "game.py").write_text(
        "class Game:\n"
        "    def reset(self, **_):\n"
        "        return ' begin'\n"
        "    def add(self, a: int, b: int = 0) -> int:\n"
        '        """Add.\n\n        Args:\n            a: one\n            b: two\n        """\n'
        "        return a\n"
        "    def get_reward(self):\n"
        "        return 1.0\n"
    )
    args = resolve({}, {"environment_factory": "game.py:Game", "prompts_per_step": 5})
    parts = data_and_rewards(args)
    assert (len(parts["train_dataset"]), parts["reward_funcs"]) == (5, None)
    trainer = made(tmp_path, rows=parts["train_dataset"], reward_funcs=None, environment_factory="game.py:Game")
    assert [r.name for r in trainer.rewards] == ["Game"]
    with pytest.raises(ConfigError, match=r"tool file .none\.py. does not exist"):
        made(tmp_path, reward_funcs=None, environment_factory="none.py:Game")

"""Tasksets of verifiers, the package itself: rows and rewards as it has them, and what one completion cannot answer."""

from __future__ import annotations

import asyncio
import json
import sys

import pytest

pytest.importorskip("verifiers.v1")

from seedtune.errors import ConfigError
from seedtune.rewards.call import Batch, call
from seedtune.rewards.function import Reward
from seedtune.tasks import verifiers
from seedtune.tasks.registry import builtin

TASKSET = """
import asyncio
import verifiers.v1 as vf


class Sums(vf.TaskData):
    answer: int


class SumTask(vf.Task[Sums]):
    @vf.reward(weight=2.0)
    async def right(self, trace):
        await asyncio.sleep(0)
        return float(trace.last_reply == str(self.data.answer))

    @vf.reward
    async def polite(self, task, trace):
        return {"please": float("please" in trace.last_reply), "said": float(task.answer > 0)}

    @vf.metric
    async def length(self, trace):
        return float(len(trace.last_reply))


class SumsConfig(vf.TasksetConfig):
    largest: int = 9
    split: str = "train"


class SumTaskset(vf.Taskset[SumTask, SumsConfig]):
    INFINITE = False

    def load(self):
        for a in range(1, self.config.largest + 1):
            for b in range(1, a + 1):
                yield SumTask(Sums(prompt=f"{a} + {b}?", system_prompt="Add.", answer=a + b), self.config.task)


__all__ = ["SumTaskset"]
"""


@pytest.fixture
def taskset(tmp_path, monkeypatch, request):
    """An installed taskset: its name."""
    name = f"sums_{request.node.name.split('[')[0][-20:]}_{abs(hash(request.node.name)) % 10**6}"

    def install(text=TASKSET):
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend(str(tmp_path))
        sys.modules.pop(name, None)
        return name

    verifiers._taskset.cache_clear()
    return install


def rewards(row, completion, logged=None):
    columns = {key: [value] for key, value in row.items() if key != "prompt"}
    log = (lambda name, values: logged.update({name: values})) if logged is not None else (lambda *_: None)
    return asyncio.run(verifiers.verifiers_reward([completion], [row["prompt"]], **columns, log_extra=log))


def test_rows_and_rewards_are_those_of_the_taskset(taskset):
    task = builtin("verifiers").with_args({"name": taskset(), "config": {"largest": 12}})
    assert len(task.train) + len(task.test) == 78
    assert not {json.dumps(row["prompt"]) for row in task.train} & {json.dumps(row["prompt"]) for row in task.test}
    row = task.train[0]
    assert [message["role"] for message in row["prompt"]] == ["system", "user"]
    answer = str(json.loads(row["task"])["answer"])
    logged = {}
    assert rewards(row, answer, logged) == [3.0]
    assert logged == {"verifiers/right": [1.0], "verifiers/please": [0.0], "verifiers/said": [1.0]}
    assert rewards(row, [{"role": "assistant", "content": "please, 0"}]) == [2.0]
    assert rewards(row, "") == [1.0]


def test_it_is_called_as_other_reward_functions_are(taskset):
    rows = builtin("verifiers").with_args({"name": taskset()}).train[:3]
    columns = {key: [row[key] for row in rows] for key in rows[0] if key != "prompt"}
    texts = [str(json.loads(row["task"])["answer"]) for row in rows]
    batch = Batch([row["prompt"] for row in rows], texts, [[]] * 3, columns)
    scores = call(Reward("verifiers_reward"), batch)
    assert scores.rewards == [3.0] * 3
    assert scores.extra["verifiers/right"] == [1.0] * 3


def test_another_config_to_test_on(taskset):
    name = taskset()
    task = builtin("verifiers").with_args({"name": name, "config": {"largest": 5}, "test_config": {"largest": 2}})
    assert [row["prompt"][1]["content"] for row in task.test] == ["1 + 1?", "2 + 1?", "2 + 2?"]
    assert len(task.train) == 15 - 3


def test_a_taskset_without_end(taskset):
    endless = TASKSET.replace("range(1, self.config.largest + 1)", "__import__('itertools').count(1)")
    task = builtin("verifiers").with_args({"name": taskset(endless), "size": 20, "test_size": 4})
    assert len(task.train) <= 20
    assert 1 <= len(task.test) <= 4


ALONE = '__all__ = ["SumTaskset"]'
CLASS = "class SumTask(vf.Task[Sums]):"
SETUP = "    async def setup(self, trace, runtime):\n        pass\n\n"
TOOLS = "    @classmethod\n    def toolsets(cls, config):\n        return [Adder(vf.ToolsetConfig())]\n\n"
#: A tool as verifiers 0.4 has it.
ADDER = """
class Adder(vf.Toolset[vf.ToolsetConfig]):
    @vf.tool
    async def add(self, a: int, b: int) -> str:
        \"\"\"Add two numbers.\"\"\"
        return str(a + b)


"""
ENVIRONMENT = """
class Two(vf.Env[vf.EnvConfig]):
    async def run(self, task, agents):
        pass


__all__ = ["SumTaskset", "Two"]
"""


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        (CLASS, f"{CLASS}\n    NEEDS_CONTAINER = True\n", "needs a container"),
        ("right(self, trace)", "right(self, trace, runtime)", r"scores in a runtime \(right\)"),
        ("    @vf.metric", f"{SETUP}    @vf.metric", "prepares a runtime"),
        ("@vf.reward", "@vf.metric", "has no reward"),
        ('prompt=f"{a} + {b}?", ', "", "several turns"),
        ("largest: int = 9", "largest: int", "cannot load the taskset"),
        (ALONE, "", "cannot load the taskset"),
        (
            "    INFINITE = False",
            f"{TOOLS}    INFINITE = False",
            r"has tools, .*as servers \(MCP\).*functions as tools",
        ),
        ("    @vf.metric", f"{TOOLS}    @vf.metric", r"has tools, .*as servers \(MCP\).*environment_factory"),
        (ALONE, ENVIRONMENT, "an environment of its own"),
    ],
)
def test_what_one_completion_cannot_answer_is_refused(taskset, before, after, says):
    text = TASKSET.replace("@vf.reward(weight=2.0)", "@vf.reward") if after == "@vf.metric" else TASKSET
    text = text.replace("class Sums(", f"{ADDER}class Sums(")
    assert before in text
    with pytest.raises(ConfigError, match=says):
        assert builtin("verifiers").with_args({"name": taskset(text.replace(before, after))}).train


@pytest.mark.parametrize(
    ("task_args", "says"),
    [
        ({}, "needs the name of a taskset"),
        ({"size": 3}, "needs 'name'"),
        ({"name": "no-such-taskset"}, "cannot load the taskset 'no-such-taskset'"),
        ({"name": ""}, "name is the name"),
        ({"name": "x", "config": 3}, "config is a mapping"),
        ({"name": "x", "size": 0}, "size is a whole number"),
    ],
)
def test_task_args_that_cannot_be(task_args, says):
    with pytest.raises(ConfigError, match=says):
        assert builtin("verifiers").with_args(task_args).train

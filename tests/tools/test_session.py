"""Tools and environments in the process that runs them."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time

import numpy as np
import pytest

from seedtune.errors import ConfigError, DataError, RewardError
from seedtune.tools.pool import ToolPool
from seedtune.tools.toolset import ToolSet
from talking import add


class Counter:
    """Counts, and adds chance."""

    def __init__(self):
        self.made_at = time.time()

    def reset(self, start=0, **row):
        self.count, self.row = start, row
        return f" begin at {start}"

    def step(self, by: int) -> str:
        """Count on.

        Args:
            by: how far
        """
        self.count += by
        return f"{self.count} {random.random():.6f} {np.random.rand():.6f}"  # noqa: NPY002

    def get_reward(self):
        return self.count / 10

    def _hidden(self):
        return "not a tool"


def call(name, **arguments):
    return {"name": name, "arguments": arguments}


@pytest.fixture(params=[0, 1, 2])
def pool(request):
    """Of tools, in so many processes."""
    pools = []

    def make(tools=None, environment=None, timeout=20.0):
        pools.append(
            ToolPool(
                ToolSet.of(tools, environment, in_process=request.param == 0), workers=request.param, timeout=timeout
            )
        )
        return pools[-1]

    yield make
    for one in pools:
        one.close()


def called(pool, key, *calls):
    return [(r.content, r.failed) for r in pool.result(pool.call(key, calls))]


def test_an_environment_keeps_its_state_and_gives_its_reward(pool):
    p = pool(environment=Counter)
    (first, told), (second, _) = p.start(None, {"start": 3, "prompt": "x"}, 7), p.start(None, {}, 8)
    assert p.result(told) == " begin at 3"
    assert called(p, first, call("step", by=2))[0][0].startswith("5 ")
    assert called(p, second, call("step", by=1))[0][0].startswith("1 ")
    assert called(p, first, call("step", by=2))[0][0].startswith("7 ")
    outcome = p.result(p.end(first, keep=False))
    assert (outcome.kind, outcome.reward, outcome.environment) == ("Counter", 0.7, None)


def test_what_an_environment_draws_depends_on_its_seed_alone(pool):
    p = pool(environment=Counter)

    def talk(seed, beside):
        key, _ = p.start(None, {}, seed)
        said = []
        for _ in range(3):
            for other in beside:
                called(p, other, call("step", by=1))
            said += called(p, key, call("step", by=1))
        p.result(p.end(key, keep=False))
        return said

    others = [p.start(None, {}, n)[0] for n in range(3)]
    random.seed(1)
    mine = random.getstate()
    assert talk(5, []) == talk(5, others) != talk(6, others)
    assert random.getstate() == mine


def test_environments_are_reset_and_used_again(pool):
    p = pool(environment=Counter)
    key, told = p.start(None, {"start": 1}, 0)
    p.result(told)
    p.result(p.end(key, keep=False))
    another, told = p.start(None, {"start": 2}, 0)
    assert p.result(told) == " begin at 2"
    assert called(p, another, call("step", by=0))[0][0].startswith("2 ")


def raises(a: int) -> int:
    """Raise.

    Args:
        a: any
    """
    raise ValueError("it is broken")


def leaves(a: int) -> int:
    """Exit.

    Args:
        a: any
    """
    raise SystemExit(3)


def parts(a: int) -> list:
    """Text parts, or an image.

    Args:
        a: 0 for an image
    """
    return [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}] if a else [{"type": "image"}]


def mutates(rows: list) -> int:
    """Change what it is given.

    Args:
        rows: any
    """
    rows.append(1)
    return len(rows)


async def slow_sum(a: int, b: int) -> int:
    """Add, a little later.

    Args:
        a: the first
        b: the second
    """
    await asyncio.sleep(0.01)
    return a + b


def nothing() -> None:
    """Return nothing."""


def huge() -> str:
    """Return ten million characters, and half a character."""
    return "\ud800" + "x" * 10_000_000


def test_whatever_tools_do_is_told_to_the_model(pool):
    p = pool([add, raises, leaves, parts, mutates, slow_sum, nothing, huge])
    key, _ = p.start(None, {}, 0)
    assert called(p, key, call("add", a=1, b=2), call("slow_sum", a=3, b=4)) == [("3", False), ("7", False)]
    assert called(p, key, call("raises", a=1)) == [("{'error': 'it is broken'}", True)]
    assert called(p, key, call("leaves", a=1)) == [("{'error': '3'}", True)]
    assert called(p, key, call("parts", a=1)) == [("one two", False)]
    ((content, failed),) = called(p, key, call("parts", a=0))
    assert failed
    assert "only text" in content
    ((content, failed),) = called(p, key, call("add", x=1))
    assert failed
    assert "unexpected keyword argument 'x'" in content
    ((content, failed),) = called(p, key, call("subtract", a=1))
    assert failed
    assert "there are: add, raises" in content
    given = call("mutates", rows=[5])
    assert called(p, key, given, given) == [("2", False), ("2", False)]
    assert given["arguments"] == {"rows": [5]}
    assert called(p, key, call("nothing")) == [("None", False)]
    ((content, failed),) = called(p, key, call("huge"))
    assert not failed
    assert len(content) == 1_000_000
    content.encode()


def spins(forever: bool) -> int:
    """Never return, whatever it raises.

    Args:
        forever: whether
    """
    while forever:
        with contextlib.suppress(Exception):
            time.sleep(0.01)
    return 1


async def waits(seconds: int) -> int:
    """Wait.

    Args:
        seconds: how long
    """
    await asyncio.sleep(seconds)
    return 1


def test_a_tool_that_takes_too_long_fails_and_its_process_lives_on():
    p = ToolPool(ToolSet.of([spins, waits, add], None), workers=1, timeout=0.2)
    key, _ = p.start(None, {}, 0)
    ((content, failed),) = called(p, key, call("spins", forever=True))
    assert failed
    assert "took longer than 0.2 seconds" in content
    assert called(p, key, call("waits", seconds=60)) == [("{'error': 'took too long'}", True)]
    assert called(p, key, call("add", a=1)) == [("1", False)]
    p.close()


def stuck() -> int:
    """Catch the alarm and go on."""
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(100)


def test_a_tool_that_cannot_be_interrupted_stops_the_run_with_its_name(monkeypatch):
    monkeypatch.setattr("seedtune.tools.pool._GRACE", 0.5)
    p = ToolPool(ToolSet.of([stuck], None), workers=1, timeout=0.1)
    key, _ = p.start(None, {}, 0)
    with pytest.raises(RewardError, match=r"a tool \(stuck\) did not return"):
        called(p, key, call("stuck"))


def dies() -> int:
    """End its process."""
    import os

    os._exit(1)


def test_a_tool_that_ends_its_process_is_said():
    p = ToolPool(ToolSet.of([dies], None), workers=1, timeout=5)
    key, _ = p.start(None, {}, 0)
    with pytest.raises(RewardError, match="a process that runs tools died"):
        called(p, key, call("dies"))


class Failing(Counter):
    def reset(self, what="", **row):
        if what == "reset":
            raise OSError("no server")
        self.what = what

    def get_reward(self):
        return {"nan": float("nan"), "raises": 1 / 0 if self.what == "raises" else None}.get(self.what)


def test_environments_that_fail_are_errors_with_the_row(pool):
    p = pool(environment=Failing)
    _, told = p.start(None, {"what": "reset", "prompt": "x"}, 0)
    with pytest.raises(RewardError, match=r"environment Failing: reset raised OSError: no server\n  row: {'what'"):
        p.result(told)
    for what, why in (("nan", "returned nan: a reward is a finite number"), ("raises", "raised ZeroDivisionError")):
        key, _ = p.start(None, {"what": what}, 0)
        with pytest.raises(RewardError, match=f"environment Failing: get_reward {why}"):
            p.result(p.end(key, keep=False))


class Locked(Counter):
    def reset(self, **row):
        import threading

        self.count, self.lock = 4, threading.Lock()


def test_environments_are_kept_for_reward_functions_as_far_as_they_can_be(pool):
    import cloudpickle

    p = pool(environment=Counter)
    key, _ = p.start(None, {"start": 9}, 0)
    kept = cloudpickle.loads(p.result(p.end(key, keep=True)).environment)
    assert (kept.count, kept.get_reward()) == (9, 0.9)
    p = pool(environment=Locked)
    key, _ = p.start(None, {}, 0)
    kept = cloudpickle.loads(p.result(p.end(key, keep=True)).environment)
    assert kept.count == 4
    with pytest.raises(AttributeError, match=r"Locked.lock: the environment was stepped in another process"):
        _ = kept.lock


class Strict(Counter):
    def reset(self, seed):
        self.count = seed
        return


def test_environments_that_are_free_are_those_of_their_own_tools():
    """Once, what was kept of tools that were gone was found again by an address that others had got."""
    for _ in range(50):
        for kind, told in ((Counter, " begin at 0"), (Strict, None)):
            p = ToolPool(ToolSet.of(None, kind, in_process=True), workers=0, timeout=20.0)
            key, first = p.start(None, {}, 41)
            assert p.result(first) == told
            p.result(p.end(key, keep=False))


def test_conversations_of_two_pools_in_one_process_are_two():
    pools = [ToolPool(ToolSet.of(None, Counter, in_process=True), workers=0, timeout=20.0) for _ in range(2)]
    keys = [p.start(None, {"start": 10 * n}, 41)[0] for n, p in enumerate(pools)]
    said = [called(p, key, call("step", by=1))[0][0] for p, key in zip(pools, keys, strict=True)]
    assert [text.split()[0] for text in said] == ["1", "11"]


def test_reset_gets_what_it_takes(pool):
    p = pool(environment=Strict)
    key, told = p.start(None, {"prompt": "x", "other": 1}, 41)
    assert p.result(told) is None
    assert called(p, key, call("step", by=1))[0][0].startswith("42 ")
    _, told = p.start(None, {"seed": 7}, 41)
    p.result(told)


def test_the_tools_are_described_as_the_model_sees_them():
    tools = ToolSet.of([add], {"count": Counter, "strict": Strict})
    assert [s["function"]["name"] for s in tools.schemas["count"]] == ["add", "step"]
    step = tools.schemas["count"][1]["function"]
    assert step["description"] == "Count on."
    assert step["parameters"]["properties"] == {"by": {"type": "integer", "description": "how far"}}
    assert step["parameters"]["required"] == ["by"]
    assert tools.rewarding == ("Counter", "Strict")
    assert tools.environment_of({"environment": "strict"}) == "strict"
    with pytest.raises(DataError, match="a row has environment='x', and environment_factory has 'count', 'strict'"):
        tools.environment_of({"environment": "x"})
    assert ToolSet.of(None, None) is None
    assert ToolSet.of([add], None).environment_of({"environment": "a column of the user's"}) is None


class NoReset:
    def step(self) -> None:
        """Nothing."""


class NoMethods:
    def reset(self, **_):
        return None


class NeedsArguments(NoMethods):
    def __init__(self, url):
        self.url = url


def untyped(a):
    """No types.

    Args:
        a: any
    """


def undocumented(a: int) -> int:
    return a


@pytest.mark.parametrize(
    ("tools", "environment", "why"),
    [
        (add, None, "tools is a list of functions"),
        ([3], None, "3 is no function"),
        (["missing.py:tool"], None, r"tools: tool file 'missing.py' does not exist"),
        (["add"], None, "there is no built-in tool 'add'"),
        ([untyped], None, "tool 'untyped' cannot be described to the model"),
        ([undocumented], None, "tool 'undocumented' cannot be described to the model"),
        ([add, add], None, "two tools are called 'add'"),
        (None, NoReset, "NoReset has no method reset"),
        (None, {"x": NoMethods}, "'x': has no public methods"),
        (None, {}, "an empty dictionary"),
        (None, NeedsArguments, "it is called without arguments and raised TypeError"),
        (None, 3, "environment_factory is a class"),
        ([add], {1: Counter}, "environment_factory is a class"),
    ],
)
def test_what_cannot_be_a_tool_is_said_at_once(tools, environment, why):
    with pytest.raises(ConfigError, match=why):
        ToolSet.of(tools, environment)


def test_a_tool_that_cannot_be_pickled_is_said_with_the_way_out():
    import threading

    lock = threading.Lock()

    def guarded(a: int) -> int:
        """Wait.

        Args:
            a: any
        """
        with lock:
            return a

    with pytest.raises(ConfigError, match=r"cannot be sent to another process.*reward_workers: 0"):
        ToolSet.of([guarded], None)
    assert ToolSet.of([guarded], None, in_process=True).names == ["guarded"]

"""What reward functions return, log, and are called; and those that are asynchronous."""

from __future__ import annotations

import asyncio
import functools
import itertools
import math
import os
import threading
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from transformers import LlamaForSequenceClassification

from judges import Client, Judge, OutcomeError
from seedtune.errors import RewardError
from seedtune.evaluation.best import candidate
from seedtune.rewards.call import Batch, call, call_all
from seedtune.rewards.function import Reward, eval_functions, reward_functions
from seedtune.rewards.scorer import Scorer
from tiny import tiny_llama


def batch(*texts, **columns):
    return Batch([f"q{n}" for n in range(len(texts))], list(texts), [[1]] * len(texts), columns)


def returns(value):
    return Reward(lambda completions, **kwargs: value)


# --- what is returned -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor([1.0, 2.0]), torch.tensor([[1.0], [2.0]]), torch.tensor([1, 2]),
        [torch.tensor(1.0), torch.ones(1) * 2],
        torch.tensor([1.0, 2.0], requires_grad=True), np.array([1, 2]), np.array([[1.0], [2.0]]),
        [np.float16(1), np.array([2.0])], np.array([1, 2], dtype=object), (True, Decimal(2)), [Fraction(1), np.int8(2)],
        dict.fromkeys([1.0, 2.0]).keys() and {"a": 1.0, "b": 2.0}.values(), range(1, 3), map(float, "12"),
        (float(n) for n in (1, 2)),
    ],
)  # fmt: skip
def test_numbers_of_every_kind(value):
    assert call(returns(value), batch("a", "b")).rewards == [1, 2]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (torch.tensor(1.0), r"returned tensor\(1.\) \(Tensor\); it must return a list"),
        (np.array(1.0), r"returned array\(1.\) \(ndarray\); it must return a list"),
        (np.float64(1), "must return a list"),
        (True, "must return a list"),
        (Decimal(1), "must return a list"),
        ({1.0, 2.0}, "must return a list"),
        (b"ab", "must return a list"),
        (torch.ones(2, 3), r"returned tensor\(\[1., 1., 1.\]\) \(Tensor\); a reward must be a finite number"),
        (np.ones((2, 2)), "a reward must be a finite number"),
        (np.ma.masked_array([1.0, 2.0], mask=[False, True]), r"returned masked \(MaskedConstant\)"),
        (np.ones((3, 1)), "returned 3 values for 2"),
        ([[1.0], [2.0]], "a reward must be a finite number"),
        ([{"score": 1}, {"score": 2}], "a reward must be a finite number"),
        (np.array(["1.0", "2.0"]), "a reward must be a finite number"),
        ([1.0, Decimal("NaN")], "returned Decimal.'NaN'"),
        ([1.0, Decimal("sNaN")], "finite number"),
        ([1.0, torch.tensor(math.nan)], "finite number"),
        ([1.0, 10**400], "finite number"),
        ([1.0, 1j], "finite number"),
        ([1.0, object()], "finite number"),
        ([], "returned 0 values for 2"),
        (itertools.repeat(1.0), "returned more than 2 values for 2"),
        (iter([1.0]), "returned 1 values for 2"),
    ],
)
def test_what_is_no_list_of_rewards(value, says):
    with pytest.raises(RewardError, match=says):
        call(returns(value), batch("a", "b"))


def test_an_iterator_that_fails_is_the_functions_own_error():
    with pytest.raises(RewardError, match=r"raised ZeroDivisionError[\s\S]*completion: 'bad'"):
        call(Reward(lambda completions, **k: (1 / (c != "bad") for c in completions)), batch("good", "bad"))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("error", [OutcomeError("no"), GeneratorExit()])
def test_whatever_is_raised_ends_the_function_and_not_the_run(workers, error):
    def raises(completions, **kwargs):
        raise error

    with (
        pytest.raises(RewardError, match=f"'raises' raised {type(error).__name__}"),
        Scorer([Reward(raises)], workers=workers, timeout=60) as scorer,
    ):
        scorer.gather([scorer.submit(batch("a"))])


def test_a_keyboard_interrupt_of_a_scoring_process_is_not_the_users():
    def raises(completions, **kwargs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call(Reward(raises), batch("a"))
    with (
        pytest.raises(RewardError, match="raised KeyboardInterrupt"),
        Scorer([Reward(raises)], workers=1, timeout=60) as scorer,
    ):
        scorer.gather([scorer.submit(batch("a"))])


class MuteError(Exception):
    def __str__(self):
        raise ValueError

    __repr__ = __str__


def test_what_cannot_say_what_it_is():
    def raises(completions, **kwargs):
        raise MuteError

    with pytest.raises(RewardError, match=r"raised MuteError: \(it fails to say what\)"):
        call(Reward(raises), batch("a"))
    with pytest.raises(RewardError, match=r"returned <.*MuteError object at .*a reward must be a finite number"):
        call(returns([MuteError()]), batch("a"))


def test_causes_and_groups_are_shown():
    def chained(completions, **kwargs):
        try:
            return {}["key"]
        except KeyError as e:
            raise RuntimeError from e

    def grouped(completions, **kwargs):
        raise ExceptionGroup("several", [ValueError("one"), OSError("two")])

    with pytest.raises(RewardError, match=r"KeyError: 'key'[\s\S]*direct cause[\s\S]*RuntimeError"):
        call(Reward(chained), batch("a"))
    with pytest.raises(RewardError, match=r"ValueError: one[\s\S]*OSError: two") as e:
        call(Reward(grouped), batch("a"))
    assert "function.py" not in str(e.value)


def test_functions_may_change_what_they_are_given():
    seen = []

    def empties(prompts, completions, answer, **kwargs):
        rewards = []
        while completions:
            rewards.append(float(len(completions.pop())))
            prompts.pop()[0]["content"] += "!"
            answer.pop()["value"].clear()
        return rewards

    def looks(prompts, completions, answer, **kwargs):
        seen.append((prompts, completions, answer))
        return [0.0] * len(completions)

    given = Batch([[{"role": "user", "content": "q"}]], ["ab"], [[1]], {"answer": [{"value": [3]}]})
    assert [s.rewards for s in call_all([Reward(empties), Reward(looks)], given)] == [[2], [0]]
    assert seen == [([[{"role": "user", "content": "q"}]], ["ab"], [{"value": [3]}])]
    assert given.columns == {"answer": [{"value": [3]}]}


# --- what is logged ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["reward", "kl", "hacked", "eval/mine", "eval_reward", "rewards/x/mean", "es/sigma",
                                  "num_tokens", "loss", "step", "", " ", 3, None, "twice"])  # fmt: skip
@pytest.mark.parametrize("caught", [False, True])
def test_names_of_what_the_run_measures_are_refused(name, caught):
    def twice(completions, log_metric, **kwargs):
        try:
            log_metric(name, 99.0)
        except ValueError:
            if not caught:
                raise
        return [0.0] * len(completions)

    with pytest.raises(RewardError, match=r"log_metric\(.*, \.\.\.\): "):
        call(Reward(twice), batch("a"))


@pytest.mark.parametrize("name", ["reward", "member", "completion", "tokens", "logs", ""])
def test_columns_that_the_run_writes_are_refused(name):
    def logs(completions, log_extra, **kwargs):
        log_extra(name, completions)
        return [0.0] * len(completions)

    with pytest.raises(RewardError, match=r"log_extra\(.*, \.\.\.\): "):
        call(Reward(logs), batch("a"))


def test_other_names_are_free():
    def logs(completions, log_metric, log_extra, **kwargs):
        log_metric("grader/accuracy", np.float32(0.5))
        log_metric("reward_model", torch.tensor(2))
        for c in completions:
            log_extra("note/x", [c])
        return [0.0] * len(completions)

    scores = call(Reward(logs), batch("a", "b"))
    assert scores.metrics == {"grader/accuracy": [0.5], "reward_model": [2]}
    assert scores.extra == {"note/x": ["a", "b"]}


@pytest.mark.parametrize(
    ("log", "says"),
    [
        (lambda metric, extra: metric("x", None), "must be a finite number"),
        (lambda metric, extra: metric("x", "1.0"), "must be a finite number"),
        (lambda metric, extra: metric("x", [1.0, 2.0]), "must be a finite number"),
        (lambda metric, extra: extra("x", "ab"), "one value per completion"),
        (lambda metric, extra: extra("x", 5), "one value per completion"),
        (lambda metric, extra: extra("x", ["a"]), "1 values for 2 completions"),
    ],
)
def test_what_cannot_be_logged(log, says):
    def logs(completions, log_metric, log_extra, **kwargs):
        log(log_metric, log_extra)
        return [0.0] * len(completions)

    with pytest.raises(RewardError, match=says):
        call(Reward(logs), batch("a", "b"))


# --- names ------------------------------------------------------------------------------------------------------------


def weighted(completions, weight=1.0, **kwargs):
    return [weight] * len(completions)


def weighted_2(completions, **kwargs):
    return [0.0] * len(completions)


@pytest.mark.parametrize(
    ("functions", "names"),
    [
        ([functools.partial(weighted, weight=n) for n in (1, 2)], ["weighted", "weighted_2"]),
        ([Judge(1), Judge(2), Judge(3)], ["Judge", "Judge_2", "Judge_3"]),
        ([Judge(1).method, Judge(2).method], ["method", "method_2"]),
        ([lambda **k: [], lambda **k: []], ["<lambda>", "<lambda>_2"]),
        ([weighted, weighted, weighted_2], ["weighted", "weighted_3", "weighted_2"]),
        (["conciseness", "seedtune.tasks.conciseness:conciseness"], ["conciseness", "conciseness_2"]),
        ([functools.partial(functools.partial(Judge(1)), prompts=[])], ["Judge"]),
    ],
)
def test_functions_of_one_name_are_numbered(functions, names):
    found = reward_functions(functions)
    assert [reward.name for reward in found] == names
    assert all(reward.function is (f if callable(f) else reward.function)
               for f, reward in zip(functions, found, strict=True))  # fmt: skip


def test_numbers_reach_the_worker():
    functions = reward_functions([Judge(1.0), Judge(2.0)])
    with Scorer(functions, workers=1, timeout=60) as scorer:
        assert scorer.names == ("Judge", "Judge_2")
        assert [s.rewards for s in scorer.gather([scorer.submit(batch("a"))])[0]] == [[1], [2]]


def test_eval_functions_take_no_name_that_something_else_has():
    def kl(completions, **kwargs):
        return [0.0]

    def other():
        def weighted(completions, **kwargs):
            return [0.0]

        return weighted

    rewards = reward_functions([weighted, Judge(1)])
    names = [f.name for f in eval_functions([other(), weighted, Judge(2), kl, weighted_2], rewards)]
    assert names == ["weighted_3", "weighted", "Judge_2", "kl_2", "weighted_2"]


def test_a_function_called_reward_does_not_hide_the_total():
    rows = [{"reward": 2.0, "rewards/reward": 1.0}, {"reward": 4.0, "rewards/reward": 2.0}]
    metrics = {"step": 0, "eval/rewards/reward/mean": 1.5}
    assert candidate("eval/rewards/reward/mean", metrics, rows).values_P.tolist() == [1, 2]


def test_what_is_no_function():
    model = LlamaForSequenceClassification(tiny_llama().config)
    for wrong, says in [
        (5, "a function or a list of functions"),
        ([5], "is a callable"),
        ([None], "is a callable"),
        ({"a": weighted}, "a list of functions, not a mapping.*reward_weights"),
        ([(weighted, 0.5)], "reward_weights in the settings"),
        (Judge, r"Judge is a class: give an object of it, Judge\(\.\.\.\)"),
        (functools.partial(Judge), "Judge is a class"),
        (model, "LlamaForSequenceClassification is a model: give a function"),
    ]:
        with pytest.raises(RewardError, match=says):
            reward_functions(wrong)


# --- asynchronous functions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_an_async_function_keeps_its_client_between_calls(workers):
    with Scorer([Reward(Client())], workers=workers, timeout=60) as scorer:
        scores = [scorer.gather([scorer.submit(batch("a"))])[0][0].rewards for _ in range(3)]
    assert scores == [[1], [1], [1]]


def test_an_async_function_where_a_loop_runs_already():
    """As in Jupyter."""

    async def cell():
        with Scorer([Reward(Client())], workers=0, timeout=60) as scorer:
            return scorer.gather([scorer.submit(batch("a"))])[0][0].rewards

    assert asyncio.run(cell()) == [1]


def test_async_functions_run_at_once():
    meeting = []

    def waits_for_the_other(name):
        async def wait(completions, **kwargs):
            meeting.append(name)
            while len(meeting) < 2:
                await asyncio.sleep(0.01)
            return [1.0]

        return wait

    assert [s.rewards for s in call_all([Reward(waits_for_the_other(n)) for n in "ab"], batch("x"))] == [[1], [1]]


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(0), asyncio.CancelledError(), TimeoutError()])
def test_an_async_function_that_fails_leaves_the_loop(error):
    async def fails(completions, **kwargs):
        await asyncio.sleep(0)
        raise error

    for _ in range(2):
        with pytest.raises(RewardError, match=f"'fails' raised {type(error).__name__}") as e:
            call(Reward(fails), batch("a"))
    assert "concurrent/futures" not in str(e.value)
    assert "test_calls.py" in str(e.value)


def test_a_fork_has_a_loop_of_its_own():
    call(Reward(Client()), batch("a"))
    child = os.fork() if hasattr(os, "fork") else 0
    if not child:
        os._exit(int(call(Reward(Client()), batch("a")).rewards != [1.0]))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len([t for t in threading.enumerate() if t.name == "seedtune-rewards"]) == 1

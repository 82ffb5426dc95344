"""Reward functions: found by name, called as TRL calls them, scored in processes, and refused when they misbehave."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from datasets import Dataset

from seedtune.data.prompts import Prompts
from seedtune.errors import DataError, RewardError
from seedtune.rewards.call import Batch, call
from seedtune.rewards.function import Reward, resolve, reward_functions
from seedtune.rewards.scorer import Scorer


def batch(*texts, chat=False, **columns):
    completions = [[{"role": "assistant", "content": t}] if chat else t for t in texts]
    prompts = [[{"role": "user", "content": f"q{n}"}] if chat else f"q{n}" for n in range(len(texts))]
    return Batch(prompts, completions, [[1]] * len(texts), columns, {"global_step": 3, "max_steps": 9})


def length(completions, **kwargs):
    return [float(len(c)) for c in completions]


# --- finding ----------------------------------------------------------------------------------------------------------


def test_by_builtin_name_dotted_path_and_file(tmp_path, monkeypatch):
    assert resolve("conciseness")(completions=["abc"], solution=["abc"]) == [0]
    assert resolve("seedtune.tasks.countdown.accuracy") is resolve("seedtune.tasks.countdown:accuracy")
    (tmp_path / "mine.py").write_text("def short(completions, **kwargs):\n    return [-len(c) for c in completions]\n")
    assert resolve(f"{tmp_path}/mine.py:short")(completions=["ab"]) == [-2]
    monkeypatch.chdir(tmp_path)
    assert Reward("mine.short").name == "short"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("concisenes", "no built-in reward 'concisenes'"),
        ("nowhere.py:f", "does not exist"),
        ("no_such_package.f", "cannot import"),
        ("Qwen/Qwen2.5-Math-RM-72B", "is no function.*A reward model is loaded within a function"),
        ("org/reward-model", "is no function"),
        ("a.py:f,b.py:g", "has a comma: give several as a list"),
        ("seedtune.tasks.countdown.nothing", "no function 'nothing'"),
    ],
)
def test_what_cannot_be_found(source, says):
    with pytest.raises(RewardError, match=says):
        resolve(source)


def test_a_file_that_fails_on_import(tmp_path):
    (tmp_path / "bad.py").write_text("1 / 0\n")
    with pytest.raises(RewardError, match=r"fails on import[\s\S]*ZeroDivisionError"):
        resolve(f"{tmp_path}/bad.py:f")


@pytest.mark.parametrize("name", ["correct", "conciseness", "math_correct", "calibration", "likelihood_calibration"])
def test_solutions_that_are_missing_are_said_before_anything_runs(name):
    """An empty one is in every text, and `None` is a word."""
    (reward,) = reward_functions(name)
    reward.check_rows([{"solution": "x"}, {"solution": 5}, {"solution": 0}], "train_dataset")
    for rows in (
        [{"solution": "x"}, {"solution": " "}, {"solution": None}],
        Dataset.from_dict({"solution": ["x", "", None]}),
    ):
        with pytest.raises(DataError, match=f"{name}' .* is empty in 2 of 3 rows of train_dataset .*row 2"):
            reward.check_rows(rows, "train_dataset")
        prompts = Prompts([{"prompt": "a", "solution": "b"}], [{**row, "prompt": "a"} for row in rows], None)
        with pytest.raises(DataError, match="2 of 3 rows of eval_dataset"):
            prompts.check_columns([reward], [])


def test_what_another_function_judges_needs_no_solution():
    (reward,) = reward_functions("calibration", {"calibration": {"correct": "answered"}})
    reward.check_rows([{"solution": None}], "train_dataset")


def test_solutions_may_be_numbers():
    for name, expected in (("correct", [1, 0]), ("conciseness", [0, -3])):
        assert resolve(name)(completions=["42", "no 4x"], solution=[42, 42]) == expected


def test_columns_are_checked_before_anything_runs():
    def wants(completions, solution, **kwargs):
        return []

    def optional(completions, extra=None, **kwargs):
        return []

    def strict(completions, solution):
        return []

    Reward(wants).check_columns(["prompt", "solution"])
    Reward(optional).check_columns(["prompt"])
    with pytest.raises(RewardError, match=r"requires 'solution', which the dataset lacks; its columns are: prompt, x"):
        Reward(wants).check_columns(["prompt", "x"])
    with pytest.raises(RewardError, match=r"add \*\*kwargs"):
        Reward(strict).check_columns(["prompt", "solution"])


# --- calling ----------------------------------------------------------------------------------------------------------


def test_everything_trl_gives_is_given():
    def nosy(prompts, completions, completion_ids, level, trainer_state, log_extra, log_metric, **kwargs):
        log_extra("shout", [c.upper() for c in completions])
        log_metric("seen", len(prompts))
        assert completion_ids == [[1], [1]]
        assert not kwargs
        return [trainer_state.global_step + x for x in level]

    scores = call(Reward(nosy), batch("a", "b", level=[10, 20]))
    assert scores.rewards == [13, 23]
    assert scores.extra == {"shout": ["A", "B"]}
    assert scores.metrics == {"seen": [2.0]}


def test_what_counts_as_a_number():
    def kinds(completions, **kwargs):
        return [1, True, np.float32(0.5), torch.tensor(2.0), None]

    assert call(Reward(kinds), batch(*"abcde")).rewards == [1, 1, 0.5, 2, None]
    assert call(Reward(lambda completions, **k: np.array([1.0, 2.0])), batch("a", "b")).rewards == [1, 2]


def test_async_functions():
    async def later(completions, **kwargs):
        return [1.0] * len(completions)

    assert call(Reward(later), batch("a", "b")).rewards == [1, 1]


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        ([1.0], "returned 1 values for 2 completions"),
        ([1, 2, 3], "returned 3 values for 2 completions"),
        (1.0, "must return a list"),
        ("12", "must return a list"),
        (None, "must return a list"),
        ({"a": 1, "b": 2}, "must return a list"),
        ([1.0, math.nan], "returned nan .float.*finite number"),
        ([1.0, math.inf], "returned inf"),
        ([1.0, "good"], "returned 'good' .str."),
        ([1.0, "1.0"], "returned '1.0' .str."),
        ([1.0, [2.0]], "returned .2.0. .list."),
    ],
)
def test_what_does_not(returned, says):
    def wrong(completions, **kwargs):
        return returned

    with pytest.raises(RewardError, match=says):
        call(Reward(wrong), batch("a", "b"))


def test_a_function_that_raises_shows_the_completion_it_fails_on():
    def picky(completions, **kwargs):
        return [1.0 / (c != "bad") for c in completions]

    with pytest.raises(RewardError) as e:
        call(Reward(picky), batch("good", "bad", chat=False))
    text = str(e.value)
    assert "'picky' raised ZeroDivisionError" in text
    assert "prompt:     'q1'" in text
    assert "completion: 'bad'" in text
    assert "test_rewards.py" in text
    assert "reward.py" not in text.replace("test_rewards.py", "")


def test_trls_own_rewards_work_unchanged():
    rewards = pytest.importorskip("trl.rewards")
    chat = batch(r"so \boxed{\frac{1}{3}}", r"so \boxed{2}", chat=True, solution=[r"\frac{1}{3}"] * 2)
    assert call(Reward(rewards.accuracy_reward), chat).rewards == [1, 0]
    thought = batch("<think>\na\n</think>\nb", "b", chat=True)
    assert call(Reward(rewards.think_format_reward), thought).rewards == [1, 0]
    Reward("trl.rewards.think_format_reward").check_columns(["prompt"])


# --- scoring in processes ---------------------------------------------------------------------------------------------


def test_a_file_may_import_what_lies_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    for n in (1, 2):
        (tmp_path / f"beside_{n}.py").write_text(f"VALUE = {n}\n")
    (tmp_path / "mine.py").write_text(
        "from beside_1 import VALUE\n\n"
        "def f(completions, **kwargs):\n"
        "    import beside_2\n"
        "    return [VALUE + beside_2.VALUE] * len(completions)\n"
    )
    with Scorer([Reward(f"{tmp_path}/mine.py:f")], workers=1, timeout=60) as scorer:
        assert scorer.gather([scorer.submit(batch("a"))])[0][0].rewards == [3]


def test_lambdas_and_closures_reach_the_worker_and_it_is_another_process():
    here, offset = os.getpid(), 5

    def where(completions, **kwargs):
        return [float(os.getpid() != here) + offset for _ in completions]

    with Scorer([Reward(where), Reward("answered")], workers=1, timeout=60) as scorer:
        first, second = scorer.gather([scorer.submit(batch("a", "b")), scorer.submit(batch(""))])
    assert [s.rewards for s in first] == [[6, 6], [1, 1]]
    assert [s.rewards for s in second] == [[6], [0]]


def test_zero_workers_score_in_this_process():
    seen = []

    def where(completions, **kwargs):
        seen.append(os.getpid())
        return [0.0] * len(completions)

    with Scorer([Reward(where)], workers=0, timeout=60) as scorer:
        scorer.gather([scorer.submit(batch("a"))])
    assert seen == [os.getpid()]


def test_a_function_that_hangs_is_ended():
    def hang(completions, **kwargs):
        time.sleep(600)

    started = time.monotonic()
    with Scorer([Reward(hang)], workers=1, timeout=1.5) as scorer:
        future = scorer.submit(batch("a"))
        with pytest.raises(RewardError, match=r"'hang' did not return within 1.5 seconds"):
            scorer.gather([future])
    assert time.monotonic() - started < 60


def test_a_worker_that_dies_is_named():
    def die(completions, **kwargs):
        os._exit(3)

    with (
        Scorer([Reward(die)], workers=1, timeout=60) as scorer,
        pytest.raises(RewardError, match="died while it ran reward function 'die'"),
    ):
        scorer.gather([scorer.submit(batch("a"))])


def test_an_error_in_the_worker_comes_back_whole():
    def picky(completions, **kwargs):
        raise KeyError("solution")

    with (
        Scorer([Reward(picky)], workers=1, timeout=60) as scorer,
        pytest.raises(RewardError, match=r"'picky' raised KeyError[\s\S]*completion: 'a'"),
    ):
        scorer.gather([scorer.submit(batch("a"))])


def test_while_rows_are_decoded_a_failure_or_a_hang_is_noticed():
    def picky(completions, **kwargs):
        raise ValueError("no")

    def hang(completions, **kwargs):
        time.sleep(60)

    def watch(scorer, future):
        while True:
            scorer.check([future])
            time.sleep(0.01)

    for function, timeout, says in ((picky, 60, "no"), (hang, 0.5, "did not return within 0.5 seconds")):
        with Scorer([Reward(function)], workers=1, timeout=timeout) as scorer:
            future = scorer.submit(batch("x"))
            scorer.check([future])  # it does not wait
            with pytest.raises(RewardError, match=says):
                watch(scorer, future)


def test_workers_end_with_the_process_that_started_them(tmp_path):
    code = (
        "import os, time\nfrom seedtune.rewards.scorer import Scorer\n"
        "from seedtune.rewards.call import Batch\nfrom seedtune.rewards.function import Reward\n"
        "def pid(completions, **k): return [float(os.getpid())]\n"
        "s = Scorer([Reward(pid)], workers=1, timeout=60)\n"
        "print(int(s.gather([s.submit(Batch(['a'], ['b'], [[1]], {}))])[0][0].rewards[0]), flush=True)\n"
        "time.sleep(60)\n"
    )
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    worker = int(run.stdout.readline())
    run.kill()
    run.communicate()
    for _ in range(100):
        if not alive(worker):
            return
        time.sleep(0.1)
    raise AssertionError("the worker outlived its run")


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().split(")")[-1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_sys_exit_does_not_end_the_run():
    def leave(completions, **kwargs):
        sys.exit(0)

    with pytest.raises(RewardError, match="raised SystemExit"):
        call(Reward(leave), batch("a"))


def test_what_cannot_be_sent_says_so():
    import threading

    lock = threading.Lock()

    def locked(completions, **kwargs):
        with lock:
            return [0.0] * len(completions)

    with pytest.raises(RewardError, match="reward_workers: 0"):
        Scorer([Reward(locked)], workers=1, timeout=60)


def test_partials_and_wrapped_functions_are_the_users_own(tmp_path, monkeypatch):
    """Their own module is `functools`; what must travel is the module of what they stand for."""
    from seedtune.rewards.serialize import carried

    (tmp_path / "own_partials.py").write_text(
        "import functools\n"
        "def length(completions, weight=1, **_):\n    return [weight * len(c) for c in completions]\n"
        "twice = functools.partial(length, weight=2)\n"
        "named = functools.wraps(length)(lambda *a, **k: length(*a, **k))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import own_partials

    for function in (own_partials.length, own_partials.twice, own_partials.named):
        data = carried([Reward(function)]).pickled
        there = "import sys, cloudpickle; f = cloudpickle.loads(sys.stdin.buffer.read())[0].function; print(f(['abc']))"
        done = subprocess.run([sys.executable, "-c", there], input=data, capture_output=True, cwd="/", check=False)
        assert done.returncode == 0, done.stderr.decode()
        assert done.stdout.decode().strip() in ("[3]", "[6]")

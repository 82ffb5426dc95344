"""Handing out work: every piece is answered once, whoever dies, joins, or is slow."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future

import pytest

from seedtune.distributed.dispatcher import Dispatcher, WorkerLost
from seedtune.errors import FleetError


class Simulated:
    """A worker that takes `seconds` for a piece, and says what `says` makes of it (or raises what that is)."""

    def __init__(self, name, seconds=0.01, says=lambda work: work * 10):
        self.name, self.seconds, self.says, self.asked = name, seconds, says, []

    def execute(self, work):
        self.asked.append(work)
        future = Future()

        def end():
            said = self.says(work)
            if isinstance(said, Exception):
                future.set_exception(said)
            elif said is not None:
                future.set_result(said)

        timer = threading.Timer(self.seconds, end)
        timer.daemon = True
        timer.start()
        return future


def run(workers, count=12, timeout=20.0, tick=lambda: None, lost=None):
    dispatcher = Dispatcher(timeout, (lambda worker, why: lost.append((worker.name, why))) if lost is not None else
                            (lambda worker, why: None))  # fmt: skip
    for worker in workers:
        dispatcher.join(worker)
    answers = []
    stats = dispatcher.run(range(count), lambda number, answer: answers.append((number, answer)), tick)
    return dispatcher, answers, stats


def test_every_piece_is_answered_once():
    workers = [Simulated(str(n)) for n in range(3)]
    dispatcher, answers, stats = run(workers)
    assert sorted(answers) == [(n, n * 10) for n in range(12)]
    assert 0 < stats.utilization <= 1
    assert sorted(stats.by) == [*range(12)]
    assert all(number in workers[int(name)].asked for number, name in stats.by.items())
    again = []
    dispatcher.run(range(4), lambda number, answer: again.append(answer))
    assert sorted(again) == [0, 10, 20, 30]


def test_fast_workers_do_more():
    slow, fast = Simulated("slow", 0.1), Simulated("fast", 0.01)
    run([slow, fast], 20)
    assert len(fast.asked) > 2 * len(slow.asked)


def test_the_work_of_the_dead_goes_to_others():
    lost = []
    dying = Simulated("dying", says=lambda work: WorkerLost("killed") if work > 1 else work * 10)
    dispatcher, answers, _ = run([dying, Simulated("well")], lost=lost)
    assert sorted(answers) == [(n, n * 10) for n in range(12)]
    assert lost == [("dying", "killed")]
    assert [w.name for w in dispatcher.workers] == ["well"]


def test_one_who_says_nothing_is_lost_after_a_while():
    lost = []
    _, answers, _ = run([Simulated("mute", says=lambda work: None), Simulated("well")], 1, timeout=0.5, lost=lost)
    assert answers == [(0, 0)]
    assert lost == [("mute", "no result for 0 s")]


def test_the_slowest_piece_is_asked_for_again_and_the_first_answer_counts():
    slow = Simulated("slow", 3.0)
    began = time.monotonic()
    _, answers, stats = run([slow, Simulated("fast")])
    assert sorted(answers) == [(n, n * 10) for n in range(12)]
    assert time.monotonic() - began < 2.5
    assert stats.num_speculative == 1


def test_a_late_answer_of_a_run_before_is_no_answer():
    slow = Simulated("slow", 0.6, says=lambda work: ("slow", work))
    dispatcher, _, _ = run([slow, Simulated("fast", says=lambda work: ("fast", work))], 4)
    answers = []
    dispatcher.run([100] * 60, lambda number, answer: answers.append(answer))
    assert len(answers) == 60
    assert {work for _, work in answers} == {100}


def test_one_may_join_while_others_work():
    late = Simulated("late")
    joined = []

    def tick():
        if not joined:
            joined.append(dispatcher.join(late))

    dispatcher = Dispatcher(20.0)
    dispatcher.join(Simulated("first", 0.05))
    dispatcher.run(range(12), lambda number, answer: None, tick)
    assert late.asked


def test_who_looks_around_during_a_run_loses_no_answer():
    def tick():
        time.sleep(0.03)
        dispatcher.drain_events()

    dispatcher, answers = Dispatcher(20.0), []
    for n in range(3):
        dispatcher.join(Simulated(str(n)))
    dispatcher.run(range(12), lambda number, answer: answers.append(answer), tick)
    assert len(answers) == 12


def test_late_ones_are_left_behind_when_they_may_be():
    slow = Simulated("slow", 30.0)
    dispatcher, answers, asked = Dispatcher(60.0), [], []

    def may_drop(left):
        asked.append(left)
        return len(left) <= 1

    for worker in (slow, Simulated("fast", 0.05)):
        dispatcher.join(worker)
    stats = dispatcher.run(range(6), lambda number, answer: answers.append(number), may_drop=may_drop)
    assert stats.dropped == {slow.asked[0]} == asked[-1]
    assert sorted([*answers, *stats.dropped]) == list(range(6))
    assert dispatcher.busy(slow)


def test_a_chunk_that_kills_everyone_ends_the_run():
    poisoned = [Simulated(str(n), says=lambda work: WorkerLost("killed") if work == 3 else work) for n in range(9)]
    with pytest.raises(FleetError, match="chunk 3 cost 4 replicas, the last one because: killed"):
        run(poisoned)


def test_nobody_left_is_an_error_that_says_so():
    with pytest.raises(FleetError, match="no replica"):
        run([Simulated("dying", says=lambda work: WorkerLost("killed"))], timeout=0.5)


def test_a_mistake_of_the_work_itself_is_raised():
    with pytest.raises(ZeroDivisionError):
        run([Simulated("a", says=lambda work: ZeroDivisionError("seven")), Simulated("b")])


def test_the_user_may_end_it():
    def tick():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run([Simulated("a", 0.5)], tick=tick)

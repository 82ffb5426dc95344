"""The plan of an iteration: every row once, the same plan again, nothing of the fleet in it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from seedtune.data.prompts import PromptBatch, sample_prompt_indices
from seedtune.engines.base import Prompt, Sampling
from seedtune.es.population import CENTER, Population, assign_prompts
from seedtune.rollout.chunks import ChunkTask, make_chunks


def batch(lengths):
    return PromptBatch(tuple(range(len(lengths))), tuple(Prompt("x", (5,) * n) for n in lengths), {})


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(1, 5), st.integers(2, 5), st.booleans())
def test_every_member_answers_every_prompt_once_the_longest_first(lengths, rows, size, mixed):
    every = [range(len(lengths))] * size
    plan = make_chunks(every, batch(lengths), rows, seed=1, iteration=3, mixed=mixed)
    assert plan == make_chunks(every, batch(lengths), rows, seed=1, iteration=3, mixed=mixed)
    assert mixed or all(len(set(c.members)) == 1 for c in plan)
    if mixed and len(lengths) <= rows:  # whole members
        assert all(len(c.rows) % len(lengths) == 0 for c in plan)
    elif mixed:
        assert len(plan) == -(-size * len(lengths) // rows)
    for member in range(size):
        asked = [row for c in plan for m, row in zip(c.members, c.rows, strict=True) if m == member]
        assert sorted(asked) == list(range(len(lengths)))
        assert [lengths[row] for row in asked] == sorted(lengths, reverse=True)
    assert all(len(c.rows) <= rows for c in plan)
    assert len({c.seed for c in plan}) == len(plan)
    assert all(0 <= c.seed < 2**63 for c in plan)


@given(
    st.lists(st.integers(1, 30), min_size=2, max_size=9), st.integers(1, 4), st.integers(1, 6), st.booleans(), st.data()
)
def test_members_answer_the_prompts_of_their_pair_once(lengths, rows, pairs, mixed, data):
    per_member = data.draw(st.integers(1, len(lengths)))
    members = Population(2 * pairs, antithetic=True).ask(1) if pairs else []
    assignment = assign_prompts(members, len(lengths), per_member)
    plan = make_chunks(assignment, batch(lengths), rows, seed=1, iteration=3, mixed=mixed)
    asked = [(m, row) for c in plan for m, row in zip(c.members, c.rows, strict=True)]
    assert sorted(asked) == sorted((m, row) for m, own in enumerate(assignment) for row in own)
    assert all(len(set(own)) == per_member for own in assignment)
    assert assignment[0::2] == assignment[1::2]
    times = [sum(row in own for own in assignment) for row in range(len(lengths))]
    assert max(times) - min(times) <= 2  # of a pair
    assert all(len(c.rows) <= rows for c in plan)
    assert assign_prompts([CENTER], len(lengths), per_member) == [tuple(range(len(lengths)))]


def test_some_rows_of_a_task_keep_their_members_and_seeds_and_samples_stay_behind():
    members, prompts = tuple(Population(8).ask(1)[:5]), batch([1, 2, 3, 4, 5]).prompts
    task = ChunkTask(
        members, prompts, Sampling(4, first_sampled_row=3), (10, 11, 12, 13, 14), (6, 7, 8), None, (1, 2, 3)
    )
    some = task.only([0, 2, 4])
    assert (some.members, some.prompts) == (members[::2], prompts[::2])
    assert (some.seed, some.rows, some.episode_seeds) == ((10, 12, 14), (6, 8), (1, 3))
    assert some.sampling == Sampling(4, first_sampled_row=2)


def test_another_iteration_samples_with_other_seeds():
    seeds = [{c.seed for c in make_chunks([[0, 1]] * 2, batch([1, 2]), 8, 1, t)} for t in (1, 2)]
    assert not seeds[0] & seeds[1]


@given(st.integers(0, 2**64 - 1), st.integers(1, 20), st.integers(1, 20))
def test_an_epoch_asks_every_prompt_once(seed, size, count):
    count = min(count, size)
    stream = [n for t in range(1, 2 * size + 1) for n in sample_prompt_indices(seed, t, count, size)]
    for epoch in range(len(stream) // size):
        assert sorted(stream[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_epochs_and_seeds_shuffle_differently_and_none_means_all():
    assert sample_prompt_indices(1, 1, 50, 50) != sample_prompt_indices(1, 2, 50, 50)
    assert sample_prompt_indices(1, 1, 50, 50) != sample_prompt_indices(2, 1, 50, 50)
    assert sample_prompt_indices(1, 7, None, 3) == [0, 1, 2]

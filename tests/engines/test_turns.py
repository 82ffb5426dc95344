"""Conversations in the decode loop: rows leave the batch between turns and come back."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from seedtune.engines.base import Prompt, Sampling
from seedtune.engines.rounds import generate_in_rounds
from seedtune.es.population import CENTER, Population
from tiny import tiny_llama
from tiny_engine import SHARED, WORDS, alone, engine

SAMPLING = Sampling(48)


class Scripted:
    """Every row has so many turns; what is said between them is of fixed lengths."""

    def __init__(self, turns: list[int], more: list[int], limit: int = 48) -> None:
        self.turns, self.more, self.limit = list(turns), more, limit
        self.known: dict[int, list[int]] = {}
        self.calls: list[tuple[str, int]] = []

    def ended(self, row, ids, *, stopped):
        self.calls.append(("ended", row))
        self.known[row] = list(ids)
        self.turns[row] -= 1
        return self.turns[row] > 0 and len(ids) + self.more[row] < self.limit

    def resume(self, row):
        self.calls.append(("resume", row))
        return [5 + (row + n) % 200 for n in range(self.more[row])]


def ids_of(completions):
    return [c.ids for c in completions]


def stop_early(e):
    """More tokens that end a turn, so that turns are short and of different lengths."""
    e.texts.stops |= set(range(0, len(e.tokenizer), 9))
    if e.decoder is not None:
        e.decoder.stops = torch.tensor(sorted(e.texts.stops))
    return e


@pytest.mark.parametrize("rows_at_once", [2, 3, 5])
@pytest.mark.parametrize("words", [WORDS, [*SHARED, SHARED[0]]])
@pytest.mark.parametrize("low_rank", [False, True])
def test_rows_that_come_back_say_what_they_say_in_rounds(rows_at_once, words, low_rank):
    e = stop_early(engine(**({"rank": 2} if low_rank else {})))
    prompts = e.encode(words, 48)
    members = [Population(4).ask(1)[n % 2] for n in range(5)] if low_rank else [CENTER] * 5
    sampling = dataclasses.replace(SAMPLING, rows_at_once=rows_at_once)
    turns, more = [1, 3, 2, 4, 3], [1, 17, 4, 9, 2]
    e.set_members(members)
    fast, slow = {}, {}
    e.converse(prompts, sampling, 0, fast.update, Scripted(turns, more))
    generate_in_rounds(e, members, prompts, sampling, 0, slow.update, Scripted(turns, more))
    fast, slow = [fast[n] for n in range(5)], [slow[n] for n in range(5)]
    assert ids_of(fast) == ids_of(slow)
    assert [c.text for c in fast] == [c.text for c in slow]
    assert len({len(c.ids) for c in fast}) > 2
    single = e.generate(prompts, sampling, 0)
    assert sum(len(a.ids) < len(c.ids) for a, c in zip(single, fast, strict=True)) >= 3


@pytest.mark.parametrize("decodes", [True, False])
def test_where_the_context_leaves_less_room_a_row_ends_there(decodes):
    """In the decode loop, and where transformers' own decodes: rows beside one another keep their own limits."""
    e = engine(tiny_llama(context=64))
    e.texts.stops.clear()
    e.decoder.stops = torch.empty(0, dtype=torch.long)
    prompts = [Prompt("", tuple(range(5, 5 + n))) for n in (4, 59, 40, 63)]
    rooms = [48, 5, 24, 1]
    if not decodes:
        e.ways = dataclasses.replace(e.ways, decoder=None)
    found = e.generate(prompts, dataclasses.replace(SAMPLING, rows_at_once=3), 0)
    assert [len(c.ids) for c in found] == rooms
    assert all(c.truncated for c in found)
    for prompt, completion in zip(prompts, found, strict=True):
        assert completion.ids == alone(e, prompt, len(completion.ids))
    e.set_members([CENTER] * 4)
    talked = {}
    e.converse(prompts, SAMPLING, 0, talked.update, Scripted([2, 1, 1, 1], [0, 0, 0, 0], limit=0))
    assert [talked[n].ids for n in range(4)] == ids_of(found)

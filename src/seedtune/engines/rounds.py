"""Conversations on an engine that decodes single turns: one round after another, with all that was said read again.

The reference for the decode loop, which keeps keys and values between turns; and what other engines do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ..es.population import Member
from .base import Completion, Generator, OnCompletions, Prompt, Sampling, Seed, Turns


def generate_in_rounds(
    engine: Generator,
    members: Sequence[Member],
    prompts: Sequence[Prompt],
    sampling: Sampling,
    seed: Seed,
    on_completions: OnCompletions,
    turns: Turns,
) -> None:
    """As `Generator.converse`, of rows of these members, which are the engine's again afterwards."""
    behind: dict[int, list[int]] = {n: [] for n in range(len(prompts))}  # all tokens behind a prompt
    begins = dict.fromkeys(behind, 0)  # where the last turn begins
    measured: dict[int, tuple[list[float], list[float]]] = {n: ([], []) for n in behind}
    stops: dict[int, bool] = {}
    round_number = 0
    while behind:
        rows = list(behind)
        longest = sampling.max_completion_length - min(len(ids) for ids in behind.values())
        first = sampling.first_sampled_row
        how = dataclasses.replace(
            sampling,
            max_completion_length=longest,
            first_sampled_row=None if first is None else sum(n < first for n in rows),
        )
        asked = [dataclasses.replace(prompts[n], ids=(*prompts[n].ids, *behind[n])) for n in rows]
        engine.set_members([members[n] for n in rows])
        seeds = _of_round(seed, rows, round_number)
        said = engine.generate(asked, how, seeds)
        goes_on: dict[int, list[int]] = {}
        ended: dict[int, Completion] = {}
        for n, completion in zip(rows, said, strict=True):
            begins[n] = begin = len(behind[n])
            new = completion.chosen[: sampling.max_completion_length - begin]
            stopped = completion.stop is None and not completion.truncated and len(new) == len(completion.chosen)
            for all_turns, turn in zip(measured[n], (completion.logprobs, completion.kl_uniform), strict=True):
                all_turns += (turn or ())[: len(new)]
            behind[n] += new
            stops[n] = stopped
            if turns.ended(n, behind[n], stopped=stopped):
                goes_on[n] = behind[n]
                continue
            ended[n] = _completion(engine, behind[n], measured[n], sampling, begin=begin, stopped=stopped)
        for n in list(goes_on):
            more = turns.resume(n)
            if more is None:
                stopped = stops[n]
                ended[n] = _completion(engine, goes_on.pop(n), measured[n], sampling, begin=begins[n], stopped=stopped)
                continue
            for all_turns, wanted in zip(measured[n], (sampling.logprobs, sampling.kl_uniform), strict=True):
                all_turns += [0.0] * len(more) if wanted else []
            goes_on[n] += more
        if ended:
            on_completions(ended)
        behind, round_number = goes_on, round_number + 1
    engine.set_members(members)


def _completion(
    engine: Generator,
    ids: Sequence[int],
    measured: tuple[list[float], list[float]],
    sampling: Sampling,
    *,
    begin: int,
    stopped: bool,
) -> Completion:
    made: Completion = engine.texts.completion(
        ids,
        measured[0] if sampling.logprobs else None,
        stopped=stopped,
        kl_uniform=measured[1] if sampling.kl_uniform else None,
        begin=begin,
    )
    return made


def _of_round(seed: Seed, rows: Sequence[int], number: int) -> Seed:
    """Other random numbers in every round."""
    if isinstance(seed, int):
        return (seed + number) % 2**63
    return [(seed[n] + number) % 2**63 for n in rows]

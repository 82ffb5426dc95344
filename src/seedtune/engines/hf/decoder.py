"""Continuous batching on transformers' models: the decode loop for the rows of a chunk.

As in vLLM, a fixed number of batch slots is kept full: finished rows are released, and waiting rows are prefilled into
their slots. What differs:

* The KV cache (`kv_cache`) is not paged but one block per layer, in which all rows end at the same column.
* Prefix sharing is per member: the tokens that all its prompts begin with (a system prompt, solved examples) are
  prefilled once and copied to its rows.
* Rows are of different members. `select_rows` says which rows of the chunk a forward pass holds.
* Rows of conversations leave the batch while their tools run, with their keys and values, and come back at fixed decode
  steps (or when no other row is left): whether their tools are done by then is not asked, it is waited for.
* The schedule depends on the chunk alone, never on time or on what ran before, and so do the bits of the completions.

transformers runs the model; the sampler (`sampler`) chooses the next tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from ...errors import NotFiniteError
from ...utils.arguments import accepted
from ..base import Sampling, Seed, Turns
from ..stop_strings import StopStrings
from .attention import IMPLEMENTATION
from .kv_cache import KVCache
from .logprobs import NOT_FINITE, last_logits
from .sampler import Sampler, kl_from_uniform

#: Called before a forward pass whose row n is row `rows[n]` of the chunk.
SelectRows = Callable[[torch.Tensor], None]


@dataclass(frozen=True)
class FinishedRow:
    """The tokens of a completion with the stop token, if there is one, and their log-probabilities and KL from uniform,
    if asked for; whether a stop string ended it; where its last turn begins.
    """

    row: int
    ids: list[int]
    logprobs: list[float] | None
    stopped: bool = False
    kl_uniform: list[float] | None = None
    begin: int = 0


OnFinished = Callable[[list[FinishedRow]], None]


@dataclass(frozen=True)
class _Away:
    """A row whose tools run, until the batch has made so many steps."""

    row: FinishedRow
    until: int


#: Columns of the KV cache for decode steps to come; when they are used up, it is compacted.
_SPARE_COLUMNS = 16
#: Rows whose tools ran come back together, at every so many decode steps of the others: a few rows cost as much to
#: prefill as many. Never by the time that tools take: completions would depend on it.
_STEPS_AWAY = 8


class Decoder:
    """Decodes chunks. Finished rows are looked for every `check_every` steps (a look makes a GPU wait, and a row that
    has ended occupies a slot); a prefill batch has about `prefill_tokens` tokens.

    `own_masks`: make causal masks here, where that is known to be the same; else transformers makes them.

    Raises ValueError for a model whose cache is not one of keys and values of every token.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        stops: set[int],
        pad: int,
        stop_strings: StopStrings | None = None,
        check_every: int = 1,
        prefill_tokens: int = 512,
        own_masks: bool = True,
    ) -> None:
        num_layers = KVCache.num_layers(model)
        if num_layers is None:
            raise ValueError("this model does not cache keys and values of every token")
        self.model, self.num_layers, self.pad = model, num_layers, pad
        self.device = model.device
        self.stops, self.stop_strings = torch.tensor(sorted(stops), device=self.device), stop_strings
        self.check_every, self.prefill_tokens = check_every, prefill_tokens
        # transformers makes masks too, of sliding windows as well, but asks a GPU at every step whether one is needed.
        implementation = model.config._attn_implementation
        known = not KVCache.has_sliding_window(model) and implementation in ("sdpa", IMPLEMENTATION)
        self.makes_masks = own_masks and known
        self._last_only = last_logits(model, 1)
        self._takes_positions = bool(accepted(model.forward, position_ids=None))
        # From 5.24 on transformers' models call it `cache`; those that bring code of their own may not.
        self._cache_argument = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
        self._cache: KVCache | None = None

    def decode(
        self,
        prompts: Sequence[Sequence[int]],
        members: Sequence[Hashable],
        sampling: Sampling,
        seed: Seed,
        rows_at_once: int,
        select_rows: SelectRows,
        on_finished: OnFinished,
        turns: Turns | None = None,
        rooms: Sequence[int] | None = None,
    ) -> None:
        """Decode one chunk: row n completes `prompts[n]` as member `members[n]` (any value that identifies it), in
        `rows_at_once` batch slots. `on_finished` gets finished rows, some at a time; with `turns`, all turns of them.
        `rooms`: how many tokens may stand behind each prompt, where that is fewer than `max_completion_length`.
        """
        slots = min(rows_at_once, len(prompts))
        with torch.inference_mode():
            batch = _Batch(self, prompts, members, sampling, seed, slots, select_rows, turns, rooms)
            batch.share_prefixes()
            while batch.num_active or batch.waiting or batch.away:
                finished = batch.return_rows()
                batch.admit()
                for _ in range(self.check_every if batch.num_active else 0):
                    batch.step()
                finished += batch.release()
                if finished:
                    on_finished(finished)

    def cache(self, num_slots: int, max_columns: int) -> KVCache:
        """A KV cache of this size; that of the chunk before, if it has this size, so no memory is allocated."""
        if self._cache is None or (self._cache.num_slots, self._cache.max_columns) != (num_slots, max_columns):
            self._cache = None
            self._cache = KVCache(self.num_layers, num_slots, max_columns)
        return self._cache

    def forward(
        self, cache: KVCache, ids: torch.Tensor, starts: torch.Tensor, slots: slice, first: int, write: int, end: int
    ) -> torch.Tensor:
        """Logits [rows, vocabulary] after the tokens `ids` [rows, tokens], whose keys and values go to the columns from
        `write` on.

        Attention reads the columns from `first` to `end`. A row begins at the column `starts` [rows]: columns before
        it, and those after the new tokens, are masked.
        """
        columns = torch.arange(first, end, device=self.device)
        new = columns[write - first : write - first + ids.shape[1]]
        cache.set_view(slots, first, write, end)
        visible = (columns >= starts[:, None]) & (columns < write + ids.shape[1])
        positions = {"position_ids": (new - starts[:, None]).clamp(min=0)} if self._takes_positions else {}
        out = self.model(
            input_ids=ids,
            attention_mask=self._mask(visible, columns, new) if self.makes_masks else visible.long(),
            **positions,
            use_cache=True,
            **{self._cache_argument: cache},
            **self._last_only,
        )
        logits: torch.Tensor = out.logits[:, -1]
        return logits

    @staticmethod
    def _mask(visible: torch.Tensor, columns: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """The causal mask [rows, 1, tokens, columns]. Padding attends to itself, since attention to nothing is NaN."""
        before, itself = columns <= new[:, None], columns == new[:, None]
        return visible[:, None, None, :] & before | itself


class _Batch:
    """A chunk that is being decoded. Slot n holds row `rows[n]` of the chunk; the first `num_active` slots are in use.

    Columns of the KV cache from `first` to `end` are in use.
    """

    def __init__(
        self,
        decoder: Decoder,
        prompts: Sequence[Sequence[int]],
        members: Sequence[Hashable],
        sampling: Sampling,
        seed: Seed,
        num_slots: int,
        select_rows: SelectRows,
        turns: Turns | None = None,
        rooms: Sequence[int] | None = None,
    ) -> None:
        self.decoder, self.prompts, self.members, self.select_rows = decoder, list(prompts), members, select_rows
        self.turns, self.steps = turns, 0
        self.away: dict[int, _Away] = {}
        self.parked: dict[int, list[torch.Tensor]] = {}  # keys and values of rows that come back
        self.lengths = [0] * len(prompts)  # of what stands behind the prompts, where rows are admitted
        self.waiting = sorted(range(len(prompts)), key=lambda n: (-len(prompts[n]), n))
        self.num_slots, self.num_active = num_slots, 0
        longest, self.max_new_tokens = len(prompts[self.waiting[0]]), sampling.max_completion_length
        rooms = rooms or [self.max_new_tokens] * len(prompts)
        widest = max(len(prompt) + room for prompt, room in zip(prompts, rooms, strict=True))
        self.cache = decoder.cache(num_slots, widest + decoder.check_every + _SPARE_COLUMNS)
        self.cache.compact(longest + _SPARE_COLUMNS)
        self.first = self.end = longest
        device = decoder.device
        self.sampler = Sampler(sampling, len(prompts), seed, device)
        self.rows, self.starts, self.num_generated, self.last_tokens = (
            torch.zeros(num_slots, dtype=torch.long, device=device) for _ in range(4)
        )
        self.rooms = torch.tensor(list(rooms), device=device)
        self.finished = torch.zeros(num_slots, dtype=torch.bool, device=device)
        shape = len(prompts), self.max_new_tokens + 1  # the last column takes what finished rows go on to write
        self.output_ids = torch.zeros(shape, dtype=torch.long, device=device)
        self.contexts = self._contexts() if self.sampler.reads_context else None
        self.tails, self.stopped = self._tails(), torch.zeros(len(prompts), dtype=torch.bool, device=device)
        self.logprobs = torch.zeros(shape, device=device) if sampling.logprobs else None
        self.kl_uniform = torch.zeros(shape, device=device) if sampling.kl_uniform else None

    # --- prefill ------------------------------------------------------------------------------------------------------

    def share_prefixes(self) -> None:
        """Prefill, once per member, the tokens that all its prompts begin with, where members have two prompts or more
        on average. In the cache of prefixes all end at the last column.
        """
        rows_of: dict[Hashable, list[int]] = {}
        for n, member in enumerate(self.members):
            rows_of.setdefault(member, []).append(n)
        self.prefix_lengths, self.prefix_slots = [0] * len(self.members), [0] * len(self.members)
        if 2 * len(rows_of) > len(self.members):
            return
        shared = [(self._prefix_length(rows), rows) for rows in rows_of.values()]
        shared = sorted(((length, rows) for length, rows in shared if length), key=lambda one: (-one[0], one[1][0]))
        if not shared:
            return
        for slot, (length, rows) in enumerate(shared):
            for n in rows:
                self.prefix_lengths[n], self.prefix_slots[n] = length, slot
        longest, device = shared[0][0], self.decoder.device
        self.prefix_cache = KVCache(self.decoder.num_layers, len(shared), longest)
        done = 0
        while done < len(shared):
            width = shared[done][0]
            some = shared[done : done + max(1, self.decoder.prefill_tokens // width)]
            firsts, lengths = [rows[0] for _, rows in some], [length for length, _ in some]
            self.select_rows(torch.tensor(firsts, device=device))
            ids = self._padded([self.prompts[n][:length] for n, length in zip(firsts, lengths, strict=True)], width)
            starts, slots = longest - torch.tensor(lengths, device=device), slice(done, done + len(some))
            self.decoder.forward(self.prefix_cache, ids, starts, slots, longest - width, longest - width, longest)
            done += len(some)

    def _prefix_length(self, rows: Sequence[int]) -> int:
        prompts = [self.prompts[n] for n in rows]
        return min(_common_prefix(prompts), min(map(len, prompts)) - 1) if len(rows) > 1 else 0

    def _padded(self, ids: Sequence[Sequence[int]], width: int) -> torch.Tensor:
        """[rows, width], filled up on the left."""
        rows = [[self.decoder.pad] * (width - len(row)) + list(row) for row in ids]
        return torch.tensor(rows, device=self.decoder.device)

    def admit(self) -> None:
        """Prefill waiting rows into free slots, once an eighth is free: a few rows alone cost as much as many."""
        free = self.num_slots - self.num_active
        if not self.waiting or (self.num_active and free < min(len(self.waiting), max(1, self.num_slots // 8))):
            return
        if len(self.prompts[self.waiting[0]]) > self.end:  # it was in the batch before, and has grown
            if not self.num_active:
                self.first = self.end
            self._compact()
        own = {n: max(1, len(self.prompts[n]) - self.prefix_lengths[n]) for n in self.waiting[:free]}
        admitted, self.waiting = sorted(own, key=lambda n: (-own[n], n)), self.waiting[free:]
        while admitted:
            width = own[admitted[0]]
            count = max(1, self.decoder.prefill_tokens // width)
            self._prefill(admitted[:count], width)
            admitted = admitted[count:]
        self.select_rows(self.rows[: self.num_active])

    def _prefill(self, admitted: list[int], width: int) -> None:
        """Compute the last `width` tokens of the rows' prompts; those before are in their member's prefix."""
        device = self.decoder.device
        prompts = [self.prompts[n] for n in admitted]
        slots = slice(self.num_active, self.num_active + len(admitted))
        lengths = torch.tensor([len(p) for p in prompts])
        self._copy_prefixes(admitted, width)
        self.rows[slots] = torch.tensor(admitted, device=device)
        self.starts[slots] = self.end - lengths.to(device)
        self.num_generated[slots] = torch.tensor([self.lengths[n] for n in admitted], device=device)
        self.finished[slots] = False
        ids = self._padded([p[-width:] for p in prompts], width)
        self.select_rows(self.rows[slots])
        first = self.end - max(map(len, prompts))
        logits = self.decoder.forward(self.cache, ids, self.starts[slots], slots, first, self.end - width, self.end)
        self.num_active += len(admitted)
        self.first = min(self.first, first) if slots.start else first
        self._sample(slots, logits)

    def _copy_prefixes(self, admitted: list[int], width: int) -> None:
        """To the slots of these rows, what stands before the last `width` tokens of their prompts."""
        alike: dict[tuple[int, int], list[int]] = {}
        for place, n in enumerate(admitted):
            length = len(self.prompts[n])
            if n in self.parked:
                self.cache.put(self.num_active + place, self.parked.pop(n), max(length - width, 0), self.end - length)
            elif length > width:
                alike.setdefault((length, self.prefix_lengths[n]), []).append(place)
        for (length, of_prefix), places in alike.items():
            sources = torch.tensor([self.prefix_slots[admitted[place]] for place in places])
            targets, first = self.num_active + torch.tensor(places), self.prefix_cache.columns - of_prefix
            columns = slice(first, first + length - width)
            self.cache.copy_from(self.prefix_cache, sources, targets, columns, self.end - length)

    # --- decode -------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """One token for every active row."""
        if self.end == self.cache.columns:
            self._compact()
        slots = slice(0, self.num_active)
        ids, starts = self.last_tokens[slots, None], self.starts[slots]
        logits = self.decoder.forward(self.cache, ids, starts, slots, 0, self.end, self.cache.columns)
        self.end += 1
        self.steps += 1
        self._sample(slots, logits)

    def _sample(self, slots: slice, logits: torch.Tensor) -> None:
        """Choose the next tokens of these slots, and mark rows that they finish."""
        rows, num_generated, unfinished = self.rows[slots], self.num_generated[slots], ~self.finished[slots]
        tokens = self.sampler(logits, rows, num_generated, None if self.contexts is None else self.contexts[rows])
        self.last_tokens[slots] = tokens
        column = torch.where(unfinished, num_generated, self.max_new_tokens)
        self.output_ids[rows, column] = tokens
        self._measure(rows, column, tokens, logits)
        if self.contexts is not None:
            self.contexts[rows, column] = tokens
        num_generated += unfinished
        self.finished[slots] |= torch.isin(tokens, self.decoder.stops) | (num_generated >= self.rooms[rows])
        if self.decoder.stop_strings is not None:
            self.tails[rows] = tails = torch.cat([self.tails[rows, 1:], tokens[:, None]], dim=1)
            self.stopped[rows] |= (ended := self.decoder.stop_strings(tails) & unfinished)
            self.finished[slots] |= ended

    def _measure(self, rows: torch.Tensor, column: torch.Tensor, tokens: torch.Tensor, logits: torch.Tensor) -> None:
        """What was asked for of the tokens [rows], by the model's own distribution, in float32."""
        if self.logprobs is None and self.kl_uniform is None:
            return
        logprobs = logits.float().log_softmax(-1)
        if self.logprobs is not None:
            self.logprobs[rows, column] = logprobs.gather(-1, tokens[:, None])[:, 0]
        if self.kl_uniform is not None:
            self.kl_uniform[rows, column] = kl_from_uniform(logprobs)

    def _contexts(self) -> torch.Tensor:
        """Per row, its new tokens and its prompt [rows, columns], filled up with a token of the prompt: what counts is
        which tokens there are. New tokens are written over that.
        """
        longest = max(map(len, self.prompts))
        filled = [[p[0]] * (self.max_new_tokens + 1) + list(p) + [p[0]] * (longest - len(p)) for p in self.prompts]
        return torch.tensor(filled, device=self.decoder.device)

    def _tails(self) -> torch.Tensor:
        """The last tokens of every row's prompt, as stop strings need them."""
        strings = self.decoder.stop_strings
        tails = [[] if strings is None else strings.tail(p, ()) for p in self.prompts]
        return torch.tensor(tails, dtype=torch.long, device=self.decoder.device)

    def _compact(self) -> None:
        """Drop the columns that no active row uses, but keep room for the prompts that wait."""
        longest = max((len(self.prompts[n]) for n in self.waiting[:1]), default=0)
        end = max(self.end - self.first, longest)
        shift = self.end - end
        self.cache.compact(end + _SPARE_COLUMNS, self.num_active, self.first, self.end, to=self.first - shift)
        self.first, self.end = self.first - shift, end
        self.starts -= shift

    # --- finished rows ------------------------------------------------------------------------------------------------

    def release(self) -> list[FinishedRow]:
        """Remove the finished rows; the last of the others move to their slots. Raises NotFiniteError."""
        if not self.sampler.sound:
            raise NotFiniteError(NOT_FINITE)
        finished = self.finished[: self.num_active].tolist()
        if not any(finished):
            return []
        freed = [n for n in range(self.num_active) if finished[n]]
        out = [row for slot, row in zip(freed, self._completions(freed), strict=True) if not self._leaves(slot, row)]
        left = self.num_active - len(freed)
        targets = torch.tensor([n for n in freed if n < left], dtype=torch.long)
        sources = torch.tensor([n for n in range(left, self.num_active) if not finished[n]], dtype=torch.long)
        if len(targets):
            self.cache.move(sources, targets, self.first, self.end)
            for state in (self.rows, self.starts, self.num_generated, self.last_tokens, self.finished):
                state[targets] = state[sources]
        self.num_active = left
        if left:
            self.first = int(self.starts[:left].min())
            self.select_rows(self.rows[:left])
        return out

    # --- conversations ------------------------------------------------------------------------------------------------

    def _leaves(self, slot: int, row: FinishedRow) -> bool:
        """Whether a row whose turn has ended will come back; its keys and values are kept for that."""
        if self.turns is None or not self.turns.ended(row.row, row.ids, stopped=row.stopped):
            return False
        start = int(self.starts[slot])
        cached = len(self.prompts[row.row]) - self.lengths[row.row] + len(row.ids) - 1  # all but the last token
        self.parked[row.row] = self.cache.take(slot, start, start + cached)
        self.prefix_lengths[row.row] = cached
        self.away[row.row] = _Away(row, (self.steps // _STEPS_AWAY + 1) * _STEPS_AWAY)
        return True

    def return_rows(self) -> list[FinishedRow]:
        """Rows whose time has come, or all of them when nothing else is left to do, wait for their next turn; returns
        those that have none.
        """
        idle = not self.num_active and not self.waiting
        due = [away for away in self.away.values() if idle or away.until <= self.steps]
        return [row for away in due if (row := self._return(away.row)) is not None]

    def _return(self, row: FinishedRow) -> FinishedRow | None:
        assert self.turns is not None
        n, known = row.row, len(row.ids)
        del self.away[n]
        if (more := self.turns.resume(n)) is None:
            del self.parked[n]
            return row
        prompt = self.prompts[n][: len(self.prompts[n]) - self.lengths[n]]
        self.prompts[n], self.lengths[n] = [*prompt, *row.ids, *more], known + len(more)
        added = torch.tensor(list(more), dtype=torch.long, device=self.decoder.device)
        self.output_ids[n, known : known + len(more)] = added
        if self.contexts is not None:
            self.contexts[n, known : known + len(more)] = added
        if (strings := self.decoder.stop_strings) is not None:
            self.tails[n] = torch.tensor(strings.tail(self.prompts[n], ()), dtype=torch.long, device=self.tails.device)
            self.stopped[n] = False
        for measured in (self.logprobs, self.kl_uniform):
            if measured is not None:
                measured[n, known : known + len(more)] = 0.0
        self.waiting = sorted([*self.waiting, n], key=lambda n: (-len(self.prompts[n]), n))
        return None

    def _completions(self, slots: list[int]) -> list[FinishedRow]:
        rows, lengths = self.rows[slots].tolist(), self.num_generated[slots].tolist()
        ids = self.output_ids[rows].tolist()
        logprobs, kl_uniform = (
            [None] * len(rows) if values is None else values[rows].tolist()
            for values in (self.logprobs, self.kl_uniform)
        )
        stopped = self.stopped[rows].tolist()
        return [
            FinishedRow(row, i[:length], p and p[:length], stop, kl and kl[:length], self.lengths[row])
            for row, length, i, p, stop, kl in zip(rows, lengths, ids, logprobs, stopped, kl_uniform, strict=True)
        ]


def _common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with."""
    low, high = min(map(tuple, prompts)), max(map(tuple, prompts))  # what these two share, all share
    return next((n for n, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))

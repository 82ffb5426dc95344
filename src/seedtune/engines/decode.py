"""The decode loop: rows of many members, in one batch that is kept full.

Rows that end leave, and waiting rows take their places; the prefix that all prompts of a chunk share (a system prompt,
instructions) is computed once a member and copied to its rows. transformers runs the model and chooses the masks; only
the loop is ours. Everything happens in an order that depends on the chunk alone, and so do the bits of what it yields.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from .attention import ROWS
from .base import Sampling
from .cache import RowCache
from .choose import Chooser, logprobs

#: Chooses the members that answer the next forward pass: row n of it belongs to row `rows[n]` of the chunk.
Seat = Callable[[torch.Tensor], None]


@dataclass(frozen=True)
class Written:
    """What a row wrote: tokens with the stop token, if it came to one, and their log-probabilities, if asked for."""

    row: int
    ids: list[int]
    logprobs: list[float] | None


#: Steps after which the cache is laid out anew.
_ROOM = 16

OnWritten = Callable[[list[Written]], None]


class Decoder:
    """Decodes chunks. `rows_at_once` rows share a batch; ends are looked for every `check_every` steps (a look costs a
    GPU its queue, and a row that has ended costs a place). Raises ValueError for a model that caches otherwise than
    keys and values of every token.
    """

    def __init__(
        self, model: PreTrainedModel, *, stops: set[int], pad: int, check_every: int = 1, prefill_tokens: int = 512
    ) -> None:
        layers = RowCache.suits(model)
        if layers is None:
            raise ValueError("this model does not cache keys and values of every token")
        self.model, self.layers, self.pad = model, layers, pad
        self.device = model.device
        self.stops = torch.tensor(sorted(stops), device=self.device)
        self.check_every, self.prefill_tokens = check_every, prefill_tokens
        # transformers draws masks too, of sliding windows as well, but asks a GPU at every step whether one is needed.
        self.draws_masks = not RowCache.slides(model) and model.config._attn_implementation in ("sdpa", ROWS)
        keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._last_only = {"logits_to_keep": 1} if keeps else {}
        self._cache: RowCache | None = None

    def decode(
        self,
        prompts: Sequence[Sequence[int]],
        members: Sequence[Hashable],
        sampling: Sampling,
        seed: int,
        rows_at_once: int,
        seat: Seat,
        on_written: OnWritten,
    ) -> None:
        """Decode one chunk: row n is `prompts[n]`, answered by member `members[n]` (whatever tells them apart).

        `on_written` gets the rows that ended, some at a time.
        """
        with torch.inference_mode():
            batch = _Batch(self, prompts, members, sampling, seed, min(rows_at_once, len(prompts)), seat)
            batch.share_prefix()
            while batch.live or batch.waiting:
                batch.admit()
                for _ in range(self.check_every):
                    batch.step()
                if written := batch.release():
                    on_written(written)

    def cache(self, places: int, most: int) -> RowCache:
        """The cache of the chunk before, when it has this size: memory is not asked for again."""
        if self._cache is None or (self._cache.places, self._cache.most) != (places, most):
            self._cache = None
            self._cache = RowCache(self.layers, places, most)
        return self._cache

    def forward(
        self, cache: RowCache, ids: torch.Tensor, starts: torch.Tensor, rows: slice, first: int, write: int, end: int
    ) -> torch.Tensor:
        """Logits [rows, vocabulary] behind the tokens `ids` [rows, tokens], which go to the columns from `write` on.

        Columns from `first` to `end` are looked at; rows begin at the columns `starts`: what stands before is not seen,
        nor what stands behind their tokens.
        """
        columns = torch.arange(first, end, device=self.device)
        written = columns[write - first : write - first + ids.shape[1]]
        cache.view(rows, first, write, end)
        seen = (columns >= starts[:, None]) & (columns < write + ids.shape[1])
        out = self.model(
            input_ids=ids,
            attention_mask=self._mask(seen, columns, written) if self.draws_masks else seen.long(),
            position_ids=(written - starts[:, None]).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            **self._last_only,
        )
        logits: torch.Tensor = out.logits[:, -1]
        return logits

    @staticmethod
    def _mask(seen: torch.Tensor, columns: torch.Tensor, written: torch.Tensor) -> torch.Tensor:
        """What each new token may look at, [rows, 1, tokens, columns]. Padding looks at itself: at nothing is NaN."""
        before, itself = columns <= written[:, None], columns == written[:, None]
        return seen[:, None, None, :] & before | itself


class _Batch:
    """A chunk while it is decoded. Place n of the batch holds row `rows[n]` of the chunk; places are filled from 0."""

    def __init__(
        self,
        decoder: Decoder,
        prompts: Sequence[Sequence[int]],
        members: Sequence[Hashable],
        sampling: Sampling,
        seed: int,
        places: int,
        seat: Seat,
    ) -> None:
        self.decoder, self.prompts, self.members, self.sampling, self.seat = decoder, prompts, members, sampling, seat
        self.waiting = sorted(range(len(prompts)), key=lambda n: (-len(prompts[n]), n))
        self.places, self.live = places, 0
        longest, self.most = len(prompts[self.waiting[0]]), sampling.max_completion_length
        self.cache = decoder.cache(places, longest + self.most + decoder.check_every + _ROOM)
        self.cache.lay_out(longest + _ROOM)
        self.first = self.end = longest
        device = decoder.device
        self.choose = Chooser(sampling, len(prompts), seed, device)
        self.rows, self.starts, self.ages, self.tokens = (
            torch.zeros(places, dtype=torch.long, device=device) for _ in range(4)
        )
        self.ended = torch.zeros(places, dtype=torch.bool, device=device)
        self.written = torch.zeros(
            len(prompts), self.most + 1, dtype=torch.long, device=device
        )  # the last is for waste
        self.chances = torch.zeros(len(prompts), self.most + 1, device=device) if sampling.logprobs else None

    # --- joining ------------------------------------------------------------------------------------------------------

    def share_prefix(self) -> None:
        """Compute what all prompts begin with, once a member, where that saves at least half of it."""
        self.prefix = min(_common_prefix(self.prompts), min(map(len, self.prompts)) - 1)
        firsts = {m: n for n, m in reversed(list(enumerate(self.members)))}
        if 2 * len(firsts) > len(self.prompts):
            self.prefix = 0
        if not self.prefix:
            return
        who = sorted(firsts.values())
        self.place_of = {self.members[n]: place for place, n in enumerate(who)}
        self.prefixes = RowCache(self.decoder.layers, len(who), self.prefix)
        ids = torch.tensor([self.prompts[0][: self.prefix]], device=self.decoder.device)
        at_once = max(1, self.decoder.prefill_tokens // self.prefix)
        for n in range(0, len(who), at_once):
            rows = torch.tensor(who[n : n + at_once], device=self.decoder.device)
            self.seat(rows)
            places = slice(n, n + len(rows))
            self.decoder.forward(
                self.prefixes, ids.expand(len(rows), -1), torch.zeros_like(rows), places, 0, 0, self.prefix
            )  # fmt: skip

    def admit(self) -> None:
        """Fill free places, once an eighth of them is free: a few rows alone would cost as much as many."""
        free = self.places - self.live
        if not self.waiting or (self.live and free < min(len(self.waiting), max(1, self.places // 8))):
            return
        joining, self.waiting = self.waiting[:free], self.waiting[free:]
        while joining:
            width = max(1, len(self.prompts[joining[0]]) - self.prefix)
            count = max(1, self.decoder.prefill_tokens // width)
            self._prefill(joining[:count], width)
            joining = joining[count:]
        self.seat(self.rows[: self.live])

    def _prefill(self, joining: list[int], width: int) -> None:
        """Feed the last `width` tokens of the rows' prompts; what stands before is in their member's prefix."""
        device, pad = self.decoder.device, self.decoder.pad
        prompts = [self.prompts[n] for n in joining]
        part = slice(self.live, self.live + len(joining))
        lengths = torch.tensor([len(p) for p in prompts])
        if self.prefix:
            sources = torch.tensor([self.place_of[self.members[n]] for n in joining])
            for length in lengths[lengths > width].unique().tolist():
                same = (lengths == length).nonzero()[:, 0]
                self.cache.copy(self.prefixes, sources[same], self.live + same, length - width, self.end - length)
        self.rows[part] = torch.tensor(joining, device=device)
        self.starts[part] = self.end - lengths.to(device)
        self.ages[part] = 0
        self.ended[part] = False
        ids = torch.tensor([[pad] * (width - len(p)) + list(p[-width:]) for p in prompts], device=device)
        self.seat(self.rows[part])
        first = self.end - max(map(len, prompts))
        logits = self.decoder.forward(self.cache, ids, self.starts[part], part, first, self.end - width, self.end)
        self.live += len(joining)
        self.first = min(self.first, first) if part.start else first
        self._write(part, logits)

    # --- going on -----------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """One token for every row."""
        if self.end == self.cache.columns:
            self._lay_out()
        part = slice(0, self.live)
        ids, starts = self.tokens[part, None], self.starts[part]
        logits = self.decoder.forward(self.cache, ids, starts, part, 0, self.end, self.cache.columns)
        self.end += 1
        self._write(part, logits)

    def _write(self, part: slice, logits: torch.Tensor) -> None:
        """Choose the next tokens of the places `part`, and note which of them end a row."""
        rows, ages, going = self.rows[part], self.ages[part], ~self.ended[part]
        tokens = self.choose(logits, rows, ages)
        self.tokens[part] = tokens
        column = torch.where(going, ages, self.most)
        self.written[rows, column] = tokens
        if self.chances is not None:
            self.chances[rows, column] = logprobs(logits, tokens)
        ages += going
        self.ended[part] |= torch.isin(tokens, self.decoder.stops) | (ages >= self.most)

    def _lay_out(self) -> None:
        """Columns have run out: drop those that no row holds any more, but leave room for the prompts that wait."""
        longest = max((len(self.prompts[n]) for n in self.waiting[:1]), default=0)
        end = max(self.end - self.first, longest)
        by = self.end - end
        self.cache.lay_out(end + _ROOM, self.live, self.first, self.end, to=self.first - by)
        self.first, self.end = self.first - by, end
        self.starts -= by

    # --- leaving ------------------------------------------------------------------------------------------------------

    def release(self) -> list[Written]:
        """Take out the rows that have ended; the last of the others take their places."""
        ended = self.ended[: self.live].tolist()
        if not any(ended):
            return []
        gone = [n for n in range(self.live) if ended[n]]
        out = self._texts(gone)
        left = self.live - len(gone)
        holes = torch.tensor([n for n in gone if n < left], dtype=torch.long)
        movers = torch.tensor([n for n in range(left, self.live) if not ended[n]], dtype=torch.long)
        if len(holes):
            self.cache.move(movers, holes, self.first, self.end)
            for state in (self.rows, self.starts, self.ages, self.tokens, self.ended):
                state[holes] = state[movers]
        self.live = left
        if left:
            self.first = int(self.starts[:left].min())
            self.seat(self.rows[:left])
        return out

    def _texts(self, places: list[int]) -> list[Written]:
        rows, lengths = self.rows[places].tolist(), self.ages[places].tolist()
        ids = self.written[rows].tolist()
        chances = self.chances[rows].tolist() if self.chances is not None else [None] * len(rows)
        return [
            Written(row, i[:length], c and c[:length])
            for row, length, i, c in zip(rows, lengths, ids, chances, strict=True)
        ]


def _common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with."""
    low, high = min(map(tuple, prompts)), max(map(tuple, prompts))  # whatever these two share, all share
    return next((n for n, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))

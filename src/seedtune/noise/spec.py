"""The noise stream, version 1: the specification, in numpy, short and slow.

Noise is a pure function of (run seed, iteration, pair, parameter name, element index). It is made of integer
arithmetic and one table, so every machine, library and shard layout draws the same bits.

* Generator: Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11).
* Run key: the 64 bits of the run's seed.
* Member key: the first 64 bits of Philox(counter = (iteration, pair, 0, tag), run key).
* Normal `i` of a parameter: block `i // 8` of Philox(counter = (block low, block high, parameter id, purpose),
  member key) gives eight 16-bit words, low half of each 32-bit output first; word `i % 8` indexes `TABLE`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from enum import IntEnum
from functools import cache
from importlib import resources
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

VERSION = 1

#: SHA-256 of `normal_table_v1.bin`: 65,536 little-endian float32.
TABLE_SHA256 = "8babbcaf96568f10165a1eab530c0e5c92d04de96761b6dbb3dadfa94baba37f"

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF

Key = tuple[int, int]


class Tag(IntEnum):
    """What a key drawn from the run key is for (last word of the counter)."""

    MEMBER = 0
    PROMPTS = 1
    SAMPLING = 2
    SAMPLES = 3


class Purpose(IntEnum):
    """What a member's words are for (last word of the counter)."""

    FULL = 0
    FACTOR_A = 1
    FACTOR_B = 2
    ROUNDING = 3


def philox4x32(counter: NDArray[np.uint32], key: Key) -> NDArray[np.uint32]:
    """Ten rounds of Philox on `counter` [..., 4]; returns [..., 4]. Salmon et al., section 3.3."""
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) for i in range(4))
    k0, k1 = key
    shift, mask = np.uint64(32), np.uint64(_MASK)
    for _ in range(10):
        p0, p1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (p1 >> shift) ^ c1 ^ np.uint64(k0), p1 & mask, (p0 >> shift) ^ c3 ^ np.uint64(k1), p0 & mask
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def run_key(seed: int) -> Key:
    """The 64 bits of the run's seed as two 32-bit words, low first."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"a seed is an integer of 64 bits, 0 <= seed < 2**64; got {seed}")
    return seed & _MASK, seed >> 32


def derived_words(seed: int, tag: Tag, first: int, second: int = 0, third: int = 0) -> tuple[int, int, int, int]:
    """128 bits for (tag, first, second, third) under the run key: Philox(counter = (first, second, third, tag))."""
    counter = np.array([first, second, third, tag], dtype=np.uint32)
    w = philox4x32(counter, run_key(seed))
    return int(w[0]), int(w[1]), int(w[2]), int(w[3])


def member_key(seed: int, iteration: int, pair: int) -> Key:
    """The key of one direction of noise. The two members of an antithetic pair share it."""
    words = derived_words(seed, Tag.MEMBER, iteration, pair)
    return words[0], words[1]


def sample_seeds(
    seed: int, iteration: int, pairs: NDArray[np.integer], prompts: NDArray[np.integer], samples: int
) -> NDArray[np.int64]:
    """Seeds of 63 bits [rows, samples] of what members of the pairs [rows] (-1: the center) draw for the prompts [rows]
    of a dataset: Philox(counter = (iteration, pair + 1, prompt, tag + 256 sample), run key). The two members of an
    antithetic pair share them, so that they differ by their noise alone (common random numbers).
    """
    counter = np.zeros((len(pairs), samples, 4), dtype=np.uint32)
    counter[..., 0] = iteration
    counter[..., 1] = (pairs + 1)[:, None]
    counter[..., 2] = prompts[:, None]
    counter[..., 3] = Tag.SAMPLES + 256 * np.arange(samples)
    out = philox4x32(counter, run_key(seed)).astype(np.uint64)
    return ((out[..., 1] << np.uint64(31)) ^ (out[..., 0] >> np.uint64(1))).astype(np.int64)


def parameter_id(name: str) -> int:
    """A stable 32-bit hash of a parameter's canonical (Hugging Face) name: SHA-256, first four bytes, little-endian."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")


def parameter_ids(names: Iterable[str], noise: str = "iid") -> dict[str, int]:
    """Ids of a model's parameters. `noise="shared"` gives all of them id 0, so that the stream starts again at every
    parameter, as in the paper's code.

    Raises ValueError when two names collide (about one model in ten thousand).
    """
    ids: dict[str, int] = {}
    owner: dict[int, str] = {}
    for name in names:
        number = 0 if noise == "shared" else parameter_id(name)
        if noise != "shared" and owner.setdefault(number, name) != name:
            raise ValueError(f"parameters {owner[number]!r} and {name!r} hash to the same id; narrow the scope")
        ids[name] = number
    return ids


def words(key: Key, parameter: int, purpose: Purpose, start: int, stop: int) -> NDArray[np.uint16]:
    """The 16-bit words of elements `start` to `stop` (exclusive) of a parameter."""
    first, last = start // 8, -(-stop // 8)
    block = np.arange(first, last, dtype=np.uint64)
    counter = np.empty((len(block), 4), dtype=np.uint32)
    counter[:, 0] = block & np.uint64(_MASK)
    counter[:, 1] = block >> np.uint64(32)
    counter[:, 2] = parameter
    counter[:, 3] = purpose
    out = philox4x32(counter, key)
    halves = np.stack([out & np.uint32(0xFFFF), out >> np.uint32(16)], axis=-1).astype(np.uint16)
    return halves.reshape(-1)[start - 8 * first : stop - 8 * first]


def normals(key: Key, parameter: int, purpose: Purpose, start: int, stop: int) -> NDArray[np.float32]:
    """Standard normals of elements `start` to `stop` (exclusive) of a parameter, float32."""
    return table()[words(key, parameter, purpose, start, stop)]


def low_rank(key: Key, parameter: int, shape: tuple[int, int], rank: int) -> NDArray[np.float32]:
    """E = A B^T / sqrt(rank), shape [m, n], for a weight of that shape. A [m, rank] and B [n, rank] are normals of
    their own purposes, in row-major order. EGGROLL, Sarkar et al., arXiv 2511.16652.

    Element by element, in the order of the rank: products and sums are float32, then one product by 1 / sqrt(rank).
    """
    a, b = factors(key, parameter, shape, rank)
    total = a[:, :1] * b[:, 0]
    for j in range(1, rank):
        total = total + a[:, j : j + 1] * b[:, j]
    return total * rank_scale(rank)


def factors(
    key: Key, parameter: int, shape: tuple[int, int], rank: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A [m, rank] and B [n, rank] of `low_rank`."""
    m, n = shape
    a = normals(key, parameter, Purpose.FACTOR_A, 0, m * rank).reshape(m, rank)
    b = normals(key, parameter, Purpose.FACTOR_B, 0, n * rank).reshape(n, rank)
    return a, b


def rank_scale(rank: int) -> np.float32:
    """1 / sqrt(rank), rounded to float32 once."""
    return np.float32(1.0 / np.sqrt(np.float64(rank)))


def make_table() -> NDArray[np.float32]:
    """The quantiles of N(0, 1) at (i + 1/2) / 65536, odd by construction, scaled to unit variance.

    Shipped as a file because the inverse CDF may round differently elsewhere; this is how the file was made.
    """
    upper = np.array([NormalDist().inv_cdf((i + 0.5) / 65536) for i in range(32768, 65536)])
    quantiles = np.concatenate([-upper[::-1], upper])
    return np.asarray(quantiles / np.sqrt(np.mean(quantiles**2)), dtype="<f4")


@cache
def table() -> NDArray[np.float32]:
    """The shipped table [65536], checked against its SHA-256."""
    data = resources.files(__package__).joinpath("normal_table_v1.bin").read_bytes()
    if hashlib.sha256(data).hexdigest() != TABLE_SHA256:
        raise ValueError("normal_table_v1.bin is damaged: its SHA-256 differs; reinstall seedtune")
    values = np.frombuffer(data, dtype="<f4").astype(np.float32)
    values.setflags(write=False)
    return values


def round_to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of float32 values rounded to bfloat16, to nearest, ties to even (finite values)."""
    bits = values.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def round_stochastically(values: NDArray[np.float32], key: Key, parameter: int, start: int = 0) -> NDArray[np.uint16]:
    """The bits of float32 values rounded to bfloat16, up with the probability of what is cut off: 16 bits of the noise
    stream are added below the last bit that is kept. Unbiased, so small updates are not lost on average.
    """
    dither = words(key, parameter, Purpose.ROUNDING, start, start + len(values))
    return ((values.view(np.uint32) + dither) >> np.uint32(16)).astype(np.uint16)


def digest(bits: NDArray[np.uint16] | NDArray[np.uint32], parameter: int, start: int = 0) -> int:
    """64-bit digest of elements `start`... of a parameter: the sum, modulo 2**64, of a mix (the finalizer of
    SplitMix64) of each element's parameter id, index and bits; so digests of shards and parameters add up.
    """
    index = np.arange(start, start + len(bits), dtype=np.uint64)
    x = (np.uint64(parameter) << np.uint64(32)) | bits.astype(np.uint64)
    x = x + (index + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    return int(np.sum(x, dtype=np.uint64))


def permutation(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    """An order of `size` prompts for an epoch: sorted by 64 bits of Philox(counter = (epoch, index, 0, tag))."""
    counter = np.zeros((size, 4), dtype=np.uint32)
    counter[:, 0] = epoch
    counter[:, 1] = np.arange(size)
    counter[:, 3] = Tag.PROMPTS
    out = philox4x32(counter, run_key(seed)).astype(np.uint64)
    return np.argsort((out[:, 1] << np.uint64(32)) | out[:, 0], kind="stable")

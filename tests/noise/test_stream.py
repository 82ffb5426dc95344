"""The noise stream: known answers, and the fast path against the specification, bit for bit."""

from __future__ import annotations

import hashlib
import itertools
import os
import signal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seedtune.noise import cpu, spec
from seedtune.noise.spec import Purpose

keys = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
word32 = st.integers(0, 2**32 - 1)

# Random123's known-answer file (kat_vectors, philox4x32, 10 rounds): counter, key, expected.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF, 0xFFFFFFFF), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, expected):
    out = spec.philox4x32(np.array(counter, np.uint32), key)
    assert tuple(int(x) for x in out) == expected


def test_table_is_what_its_maker_makes():
    made = spec.make_table()
    shipped = spec.table()
    assert hashlib.sha256(shipped.astype("<f4").tobytes()).hexdigest() == spec.TABLE_SHA256
    assert np.all(np.abs(made - shipped) <= np.spacing(np.abs(shipped)))
    assert np.array_equal(shipped, -shipped[::-1])
    assert abs(float(np.mean(shipped.astype(np.float64) ** 2)) - 1) < 1e-6


def test_the_stream_is_frozen():
    """Version 1 never changes: these bits are in every journal."""
    key = spec.member_key(seed=2026, iteration=3, pair=5)
    noise = spec.normals(key, spec.parameter_id("model.layers.0.mlp.up_proj.weight"), Purpose.FULL, 13, 13 + 4099)
    assert hashlib.sha256(noise.tobytes()).hexdigest() == FROZEN


FROZEN = "9aacc5588243415cd8b6be4648114f5bb200038348341932d8cd3b6b1ea02669"


def test_normals_are_standard_and_independent():
    a = spec.normals((1, 2), 7, Purpose.FULL, 0, 200_000).astype(np.float64)
    b = spec.normals((1, 2), 8, Purpose.FULL, 0, 200_000).astype(np.float64)
    assert abs(a.mean()) < 0.01
    assert abs(a.var() - 1) < 0.02
    assert abs(np.mean(a**4) - 3) < 0.1
    assert abs(np.mean(a * b)) < 0.01
    assert abs(np.mean(a[1:] * a[:-1])) < 0.01


def test_shared_noise_starts_again_at_every_parameter():
    ids = spec.parameter_ids(["a", "b"], noise="shared")
    assert ids == {"a": 0, "b": 0}
    assert len(set(spec.parameter_ids(["a", "b"]).values())) == 2


def test_a_collision_of_names_is_an_error(monkeypatch):
    monkeypatch.setattr(spec, "parameter_id", lambda name: 1)
    with pytest.raises(ValueError, match="same id"):
        spec.parameter_ids(["a", "b"])


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_has_64_bits(seed):
    with pytest.raises(ValueError, match="64 bits"):
        spec.run_key(seed)


@settings(max_examples=60, deadline=None)
@given(keys, word32, st.sampled_from(list(Purpose)), st.integers(0, 2**36), st.integers(0, 3000))
def test_fast_normals_equal_the_specification(key, parameter, purpose, start, size):
    out = np.empty(size, np.float32)
    cpu.normals(out, key, parameter, purpose, start)
    assert np.array_equal(
        out.view(np.uint32), spec.normals(key, parameter, purpose, start, start + size).view(np.uint32)
    )


@settings(max_examples=40, deadline=None)
@given(keys, word32, st.integers(1, 5000), st.lists(st.integers(0, 5000), max_size=4))
def test_any_split_into_shards_draws_the_same_noise(key, parameter, size, cuts):
    whole = spec.normals(key, parameter, Purpose.FULL, 0, size)
    edges = [0, *sorted(min(c, size) for c in cuts), size]
    shards = []
    for a, b in itertools.pairwise(edges):
        shard = np.empty(b - a, np.float32)
        cpu.normals(shard, key, parameter, Purpose.FULL, start=a)
        shards.append(shard)
    assert np.array_equal(np.concatenate(shards), whole)


def weights(values, format):
    if format == cpu.F32:
        return cpu.Weights.of(values.copy(), cpu.F32)
    dtype = torch.bfloat16 if format == cpu.BF16 else torch.float16
    return cpu.Weights.of(torch.from_numpy(values).to(dtype).view(torch.uint16).numpy(), format)


@pytest.mark.parametrize("format", [cpu.F32, cpu.BF16, cpu.F16])
@settings(max_examples=30, deadline=None)
@given(keys, word32, st.integers(1, 3000), st.integers(0, 100), st.sampled_from([1e-3, -0.01, 0.0, 3.0]))
def test_perturb_is_round_of_master_plus_scaled_noise(format, key, parameter, size, start, scale):
    master = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    out = weights(np.zeros(size, np.float32), format)
    cpu.perturb(out, cpu.Weights.of(master, cpu.F32), scale, key, parameter, start)
    noise = spec.normals(key, parameter, Purpose.FULL, start, start + size)
    expected = weights(master + np.float32(scale) * noise, format)
    assert np.array_equal(out.bits(), expected.bits())
    if format == cpu.BF16:
        assert np.array_equal(out.bits16, spec.round_to_bfloat16(master + np.float32(scale) * noise))


@pytest.mark.parametrize(("format", "dtype"), [(cpu.BF16, torch.bfloat16), (cpu.F16, torch.float16)])
def test_rounding_agrees_with_torch_on_awkward_values(format, dtype):
    bits = np.random.default_rng(0).integers(0, 2**32, 300_000, dtype=np.uint32)
    every_half = torch.arange(65536).to(torch.uint16).view(dtype).float()
    ties = every_half.numpy().view(np.uint32) + np.uint32(0x1000 if format == cpu.F16 else 0x8000)
    with np.errstate(invalid="ignore"):
        values = np.concatenate([bits, ties]).view(np.float32)
        values = values[np.isfinite(values)]
    out = cpu.Weights.of(np.empty(len(values), np.uint16), format)
    cpu.perturb(out, cpu.Weights.of(values, cpu.F32), 0.0, (0, 0), 0)
    expected = torch.from_numpy(values).to(dtype).view(torch.uint16).numpy()
    assert np.array_equal(out.bits16, expected)
    # and back: every finite 16-bit value loads exactly
    finite = every_half[torch.isfinite(every_half)]
    back = np.empty(len(finite), np.float32)
    cpu.perturb(
        cpu.Weights.of(back, cpu.F32),
        cpu.Weights.of(finite.to(dtype).view(torch.uint16).numpy(), format),
        0.0,
        (0, 0),
        0,
    )
    assert np.array_equal(back.view(np.uint32), finite.numpy().view(np.uint32))


@settings(max_examples=30, deadline=None)
@given(word32, st.integers(1, 3000), st.integers(0, 2**33))
def test_fast_digest_equals_the_specification_and_shards_add_up(parameter, size, start):
    values = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    for w in (cpu.Weights.of(values, cpu.F32), weights(values, cpu.BF16)):
        expected = spec.digest(w.bits(), parameter, start)
        assert cpu.digest(w, parameter, start) == expected
        half = size // 2
        parts = cpu.digest(w.slice(0, half), parameter, start) + cpu.digest(
            w.slice(half, size), parameter, start + half
        )
        assert parts % 2**64 == expected


def test_a_digest_sees_one_flipped_bit_a_swap_and_another_parameter():
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    digest = spec.digest(values.view(np.uint32), 1)
    flipped = values.view(np.uint32).copy()
    flipped[500] ^= 1
    swapped = values.copy()
    swapped[[3, 4]] = swapped[[4, 3]]
    bits = values.view(np.uint32)
    others = [spec.digest(flipped, 1), spec.digest(swapped.view(np.uint32), 1), spec.digest(bits, 2)]
    assert len({digest, *others}) == 4


def test_parallel_keeps_order_and_covers_everything():
    parts = cpu.ranges([5, 2**18 + 1, 0, 7])
    assert [p[0] for p in parts] == [0, 1, 1, 3]
    assert sum(b - a for _, a, b in parts) == 5 + 2**18 + 1 + 7
    assert cpu.parallel(lambda n, a, b: (n, a, b), parts) == parts


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_process_that_was_forked_has_threads_of_its_own():
    """As of a sweep that forks; it hung."""
    assert cpu.parallel(max, [(1, 2)]) == [2]
    child = os.fork()
    if not child:
        signal.alarm(20)
        try:
            os._exit(int(cpu.parallel(max, [(1, 2), (4, 3)]) != [2, 4]))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

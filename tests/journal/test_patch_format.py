"""A reader of patches written from docs/reference/patch-format.md alone, held to the vectors that the page gives."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import zstandard

import seedtune

DOCS = Path(__file__).parents[2] / "docs" / "reference"
MASK = 2**32 - 1
F = np.float32


def philox(counter, key):
    (a, b, c, d), (k0, k1) = counter, key
    for _ in range(10):
        p, q = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = q >> 32 ^ b ^ k0, q & MASK, p >> 32 ^ d ^ k1, p & MASK
        k0, k1 = k0 + 0x9E3779B9 & MASK, k1 + 0xBB67AE85 & MASK
    return a, b, c, d


def table():
    data = (Path(seedtune.__file__).parent / "noise" / "normal_table_v1.bin").read_bytes()
    assert hashlib.sha256(data).hexdigest() in (DOCS / "patch-format.md").read_text()
    return np.frombuffer(data, "<f4")


def normals(key, number, purpose, count):
    out = []
    for block in range(-(-count // 8)):
        for word in philox((block & MASK, block >> 32, number, purpose), key):
            out += [word & 0xFFFF, word >> 16]
    return table()[out[:count]]


def noise(config, key, number, shape):
    m, n = shape
    if config["perturbation"] == "full":
        return normals(key, number, 0, m * n).reshape(shape)
    r = config["rank"]
    a, b = normals(key, number, 1, m * r).reshape(m, r), normals(key, number, 2, n * r).reshape(n, r)
    total = np.outer(a[:, 0], b[:, 0])
    for j in range(1, r):
        total = total + np.outer(a[:, j], b[:, j])
    return total * F(1 / np.sqrt(r))


def digest(weights, ids):
    total = 0
    for name, w in weights.items():
        for i, bits in enumerate(w.ravel().view(np.uint32).tolist()):
            x = (ids[name] << 32 | bits) + (i + 1) * 0x9E3779B97F4A7C15 & 2**64 - 1
            x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & 2**64 - 1
            x = (x ^ x >> 27) * 0x94D049BB133111EB & 2**64 - 1
            total += x ^ x >> 31
    return f"{total % 2**64:016x}"


def read(file):
    data = file.read_bytes()
    magic, version, size = struct.unpack_from("<8sHQ", data)
    assert (magic, version) == (b"SEEDTUNE", 1)
    payload = zstandard.ZstdDecompressor().decompress(data[18:])
    assert len(payload) == size
    (length,) = struct.unpack_from("<Q", payload)
    header, rest = json.loads(payload[8 : 8 + length]), payload[8 + length :]
    t, n = header["iterations"], header["members"]
    return (
        header,
        np.frombuffer(rest, "<f4", t * n).reshape(t, n),
        np.frombuffer(rest, "<f8", t, 4 * t * n),
        [f"{d:016x}" for d in np.frombuffer(rest, "<u8", t, 4 * t * n + 8 * t).tolist()],
    )


@pytest.mark.parametrize("kind", ["full", "lowrank"])
def test_a_reader_written_from_the_page_gets_its_vectors(kind):
    page = (DOCS / "patch-format.md").read_text()
    row = re.search(rf"\| `example-{kind}.seedtune` \|(.*)\|(.*)\|(.*)\|", page)
    header, coefficients, rates, digests = read(DOCS / f"example-{kind}.seedtune")
    config, ids = header["config"], {name: number for name, number, _ in header["base"]["scope"]}
    weights = {name: (np.arange(6, dtype=F) / F(8)).reshape(shape) for name, _, shape in header["base"]["scope"]}
    assert digest(weights, ids) == header["base"]["digest"]
    for t in range(1, len(rates) + 1):
        pairs = {}
        for n, c in enumerate(coefficients[t - 1]):
            pairs[n // 2] = F(pairs.get(n // 2, F(0)) + c)
        for name, w in weights.items():
            g = np.zeros_like(w)
            for pair, c in pairs.items():
                if c:
                    key = philox((t, pair, 0, 0), (config["seed"] & MASK, config["seed"] >> 32))[:2]
                    g = g + c * noise(config, key, ids[name], w.shape)
            weights[name] = w + F(rates[t - 1]) * g
        assert digest(weights, ids) == digests[t - 1]
    assert row[1].strip() == ", ".join(digests)
    for text, w in zip((row[2], row[3]), weights.values(), strict=True):
        assert text.split() == [f"{bits:08x}" for bits in w.ravel().view(np.uint32).tolist()]


def test_the_examples_on_the_page():
    page = (DOCS / "patch-format.md").read_text()
    assert ", ".join(f"0x{w:08x}" for w in philox((0, 0, 0, 0), (0, 0))) in page
    key = philox((1, 0, 0, 0), (42, 0))[:2]
    assert ", ".join(f"0x{w:08x}" for w in key) in page
    first = normals(key, int.from_bytes(hashlib.sha256(b"first.weight").digest()[:4], "little"), 0, 3)
    assert " ".join(f"{bits:08x}" for bits in first.view(np.uint32)) in page

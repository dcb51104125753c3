"""Texts -> MinHash signatures, in two forms: keys of bands, and a byte of each minimum.

A text's signature is the least value of its shingles' hashes h under each of bands x rows
functions, h -> a_k (h >> 32) + h modulo 2^32, a_k odd: two texts agree in a place with the
probability of their Jaccard similarity, the shingles that they share out of all that either has
(Broder 1997). `rows` places in a row are a band. Of a band its 64-bit hash is kept, and of each
place the last byte, by which texts that share a band are compared (b-bit minwise hashing, Li and
Koenig 2010): 8 x bands + bands x rows bytes a text.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import ceil

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shards.format import Int64
from shards.near.shingles import Bytes, Hashes, hash_shingles, make_powers, mix

# Shingles whose hashes are taken in one go; they fit into a core's cache.
BLOCK_SHINGLES = 1 << 15
# Texts at a time, by their bytes: their shingles take 8 bytes for each word.
BATCH_BYTES = 1 << 22
BAND_BASE = 0xA0761D6478BD642F
LOW_VALUES = 256  # of the byte that is kept of each minimum
Values = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class NearSettings:
    """What near-equal means: the options --near-..., by default those of `velocity prep`."""

    threshold: Fraction = Fraction(4, 5)
    shingle: int = 5
    bands: int = 16
    rows: int = 6

    @property
    def places(self) -> int:
        """The minima of a signature."""
        return self.bands * self.rows

    @property
    def entry(self) -> np.dtype[np.void]:
        """How a text's signature is stored; `keys` are 0 if it has no shingle."""
        low = ("low", "u1", (self.places,))
        return np.dtype([("keys", "<u8", (self.bands,)), low])

    @property
    def needed(self) -> int:
        """In how many places two texts must agree at least.

        Bytes of different minima agree once in 256 times, so of p places with similarity J about
        p (J + (1 - J) / 256) do.
        """
        chance = Fraction(1, LOW_VALUES)
        return ceil(self.places * (self.threshold + (1 - self.threshold) * chance))

    def estimate(self, agreeing: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
        """The similarity that so many agreeing places speak for."""
        share = agreeing.astype(np.float64) / self.places
        similar = (share * LOW_VALUES - 1) / (LOW_VALUES - 1)
        return np.clip(similar, 0, 1).astype(np.float32)

    @cached_property
    def multipliers(self) -> Values:
        """a_k: the first odd numbers that splitmix64 gives, of its upper halves."""
        counter = np.arange(1, self.places + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        return (mix(counter) >> np.uint64(32)).astype(np.uint32) | np.uint32(1)


def sign_texts(texts: pa.Array, settings: NearSettings) -> npt.NDArray[np.void]:
    """The signatures (of `settings.entry`) of texts, a large_string array without nulls."""
    signatures = np.zeros(len(texts), settings.entry)
    offsets = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset :][: len(texts) + 1]
    content = np.frombuffer(texts.buffers()[2] or b"", np.uint8)
    for first, last in group_texts(offsets):
        bounds = offsets[first : last + 1]
        sign(content, bounds, settings, signatures[first:last])
    return signatures


def group_texts(offsets: Int64) -> Iterator[tuple[int, int]]:
    """Runs of texts of about BATCH_BYTES."""
    first, num_texts = 0, len(offsets) - 1
    while first < num_texts:
        last = int(np.searchsorted(offsets, offsets[first] + BATCH_BYTES, side="right")) - 1
        last = min(max(last, first + 1), num_texts)
        yield first, last
        first = last


def sign(
    content: Bytes, offsets: Int64, settings: NearSettings, signatures: npt.NDArray[np.void]
) -> None:
    """Fill in the signatures of texts, where they have any shingle."""
    shingles, counts = hash_shingles(content, offsets, settings.shingle)
    signed = np.flatnonzero(counts)
    if not len(signed):
        return
    minima = find_minima(shingles, counts[signed], settings.multipliers)
    signatures["keys"][signed] = hash_bands(minima, settings).T
    signatures["low"][signed] = minima.astype(np.uint8).T


def find_minima(shingles: Hashes, counts: Int64, multipliers: Values) -> Values:
    """Of each function (row), the least value of each text's shingles (column).

    `counts` are the shingles of each text, at least one; they are back to back.
    """
    high, low = (shingles >> np.uint64(32)).astype(np.uint32), shingles.astype(np.uint32)
    ends = np.cumsum(counts)
    minima = np.full((len(multipliers), len(counts)), 0xFFFFFFFF, np.uint32)
    values = np.empty(min(BLOCK_SHINGLES, len(shingles)), np.uint32)
    for start in range(0, len(shingles), BLOCK_SHINGLES):
        stop = min(start + BLOCK_SHINGLES, len(shingles))
        first, last = np.searchsorted(ends, [start, stop - 1], side="right")
        starts = np.maximum((ends - counts)[first : last + 1] - start, 0)
        here, there = values[: stop - start], minima[:, first : last + 1]
        for multiplier, least in zip(multipliers, there, strict=True):
            np.multiply(high[start:stop], multiplier, out=here)
            np.add(here, low[start:stop], out=here)
            np.minimum(least, np.minimum.reduceat(here, starts), out=least)
    return minima


def hash_bands(minima: Values, settings: NearSettings) -> Hashes:
    """The hash of each band (row) of each text (column): of its number and its minima; never 0."""
    powers = make_powers(BAND_BASE, settings.rows + 1)[1:, None]
    bands = minima.reshape(settings.bands, settings.rows, -1).astype(np.uint64)
    sums = [(band * powers).sum(0, dtype=np.uint64) for band in bands]
    hashes = np.stack([mix(total + np.uint64(number)) for number, total in enumerate(sums)])
    return np.maximum(hashes, np.uint64(1))

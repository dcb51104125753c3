"""Which tokens sample s reads: a random order as arithmetic, with nothing stored.

T = max_seq_length, N = tokens in the split, e = epoch, s = the global sample number.

    W     = (N - T) // T              windows per epoch
    phi_e = hash(seed, e) mod T       a fresh offset each epoch
    e, k  = divmod(s, W)
    start = phi_e + pi_{seed,e}(k) * T

A sample is the window of T + 1 tokens from `start`. pi is a keyed permutation of 0 .. W - 1: a
Feistel network on Z_a x Z_b with a = ceil(sqrt(W)) and b = ceil(W / a), applied again while the
result is >= W ("cycle walking": Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002).
It can be inverted, so a document leads to its steps just as a step leads to its documents. Within
an epoch every window is read once, each token is an input at most once, and fewer than 2 T tokens
are missed.

In a packed set, windows are its rows of T tokens: W = N / T, and phi is 0 (PackedOrder).
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shards.format import Int64, Manifest

UInt64 = npt.NDArray[np.uint64]

NUM_ROUNDS = 6


@dataclass(frozen=True)
class SampleOrder:
    """The order in which a run with this seed reads a split of `num_tokens` tokens.

    >>> order = SampleOrder(num_tokens=1000, max_seq_length=100, seed=42)
    >>> order.windows_per_epoch
    9
    >>> sorted((order.starts(np.arange(9)) // 100).tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8]
    """

    num_tokens: int
    max_seq_length: int
    seed: int

    def __post_init__(self) -> None:
        if self.num_tokens < 2 * self.max_seq_length:
            raise ValueError(
                f"the split has {self.num_tokens:,} tokens; windows of "
                f"data.max_seq_length={self.max_seq_length} need at least "
                f"{2 * self.max_seq_length:,}, so prepare more text or set a shorter length"
            )

    @property
    def window_tokens(self) -> int:
        """The tokens of a sample's window: T, and the one that the last of them predicts."""
        return self.max_seq_length + 1

    @property
    def windows_per_epoch(self) -> int:
        """W: the number of samples in an epoch."""
        return (self.num_tokens - self.max_seq_length) // self.max_seq_length

    def phase(self, epoch: int) -> int:
        """phi_e: the position of the epoch's first window."""
        return int(derive_keys(self.seed, epoch)[0]) % self.max_seq_length

    def starts(self, samples: Int64) -> Int64:
        """Where in the split's stream each sample's window begins."""
        starts = np.empty(len(samples), np.int64)
        epochs, places = np.divmod(samples, self.windows_per_epoch)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            windows = self._permutation(epoch).apply(places[here])
            starts[here] = self.phase(epoch) + windows * self.max_seq_length
        return starts

    def samples_reading(self, start: int, stop: int, epoch: int) -> Int64:
        """The samples of an epoch whose windows hold any token in [start, stop), ascending.

        The inverse of `starts`. A window's last token is only ever a target; it counts too.
        """
        length = self.max_seq_length
        first = -((self.phase(epoch) + self.window_tokens - 1 - start) // length)
        last = (stop - 1 - self.phase(epoch)) // length
        windows = np.arange(max(first, 0), min(last, self.windows_per_epoch - 1) + 1)
        places = self._permutation(epoch).invert(windows)
        return np.sort(epoch * self.windows_per_epoch + places)

    def _permutation(self, epoch: int) -> "Permutation":
        return Permutation(self.windows_per_epoch, derive_keys(self.seed, epoch)[1:])


@dataclass(frozen=True)
class PackedOrder(SampleOrder):
    """The order in which a run reads a split of a packed set: rows of T tokens, once an epoch.

    >>> order = PackedOrder(num_tokens=900, max_seq_length=100, seed=42)
    >>> order.windows_per_epoch, sorted((order.starts(np.arange(9)) / 100).tolist())
    (9, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    """

    def __post_init__(self) -> None:
        if not self.num_tokens:
            raise ValueError("the split has no tokens, so there is nothing to train on")

    @property
    def window_tokens(self) -> int:
        """T: what the last token of a row would predict is in another one."""
        return self.max_seq_length

    @property
    def windows_per_epoch(self) -> int:
        """W: the number of samples in an epoch, which is that of rows."""
        return self.num_tokens // self.max_seq_length

    def phase(self, epoch: int) -> int:
        """Windows begin where rows begin, in every epoch."""
        return 0


def make_order(
    manifest: Manifest, max_seq_length: int, seed: int, num_tokens: int | None = None
) -> SampleOrder:
    """The order in which a run reads the train split, or its first `num_tokens`.

    Raises ValueError if there is too little for a window, or windows are not the set's rows.
    """
    num_tokens = manifest.num_tokens("train") if num_tokens is None else num_tokens
    check_row_tokens(manifest, max_seq_length)
    kind = SampleOrder if manifest.row_tokens is None else PackedOrder
    return kind(num_tokens, max_seq_length, seed)


def check_row_tokens(manifest: Manifest, max_seq_length: int) -> None:
    """ValueError if a run's windows are not the rows of its packed set."""
    if manifest.row_tokens not in (None, max_seq_length):
        raise ValueError(
            f"the set is packed in rows of {manifest.row_tokens:,} tokens, and "
            f"data.max_seq_length is {max_seq_length:,}; set data.max_seq_length="
            f"{manifest.row_tokens}, or pack it again with --pack-tokens {max_seq_length}"
        )


def find_padding(manifest: Manifest) -> int | None:
    """The token that a packed set's rows are padded with; None for a set that is not packed."""
    return None if manifest.row_tokens is None else manifest.end_of_text


@dataclass(frozen=True)
class Permutation:
    """A keyed permutation of 0 .. size - 1, vectorized, with its inverse."""

    size: int
    keys: UInt64

    def apply(self, places: Int64) -> Int64:
        """pi(k) of each k."""
        return self._walk(places, self._encrypt)

    def invert(self, windows: Int64) -> Int64:
        """The k whose pi(k) is each window."""
        return self._walk(windows, self._decrypt)

    @property
    def _sides(self) -> tuple[np.uint64, np.uint64]:
        a = math.isqrt(self.size - 1) + 1
        return np.uint64(a), np.uint64(-(-self.size // a))

    def _walk(self, values: Int64, step: Callable[[UInt64], UInt64]) -> Int64:
        """Apply `step` until each value is below `size`; few values need it more than once."""
        result = step(values.astype(np.uint64))
        outside = np.flatnonzero(result >= self.size)
        while len(outside):
            result[outside] = step(result[outside])
            outside = outside[result[outside] >= self.size]
        return result.astype(np.int64)

    def _encrypt(self, values: UInt64) -> UInt64:
        a, b = self._sides
        left, right = values // b, values % b
        for round_number, key in enumerate(self.keys):
            if round_number % 2 == 0:
                left = (left + mix(right ^ key) % a) % a
            else:
                right = (right + mix(left ^ key) % b) % b
        return left * b + right

    def _decrypt(self, values: UInt64) -> UInt64:
        a, b = self._sides
        left, right = values // b, values % b
        for round_number, key in reversed(list(enumerate(self.keys))):
            if round_number % 2 == 0:
                left = (left + a - mix(right ^ key) % a) % a
            else:
                right = (right + b - mix(left ^ key) % b) % b
        return left * b + right


def mix(values: UInt64) -> UInt64:
    """A 64-bit mixer: splitmix64's finalizer (Steele, Lea and Flood, OOPSLA 2014, figure 17)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def derive_keys(seed: int, epoch: int) -> UInt64:
    """The epoch's phase key and its round keys: 1 + NUM_ROUNDS 64-bit numbers."""
    text = f"velocity sample order 1|{seed}|{epoch}".encode()
    digest = hashlib.blake2b(text, digest_size=8 * (1 + NUM_ROUNDS)).digest()
    return np.frombuffer(digest, "<u8").astype(np.uint64)

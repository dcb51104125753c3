"""The sample order: every window once an epoch, the same for any number of ranks, invertible."""

import numpy as np
import pytest

from shards.order import Permutation, SampleOrder, derive_keys
from train.batches import Dealing

GOLDEN_STARTS = [757706, 628042, 488266, 708081, 810865, 984493]


@pytest.mark.parametrize(("num_tokens", "length"), [(200, 100), (1000, 7), (99_991, 64), (65, 1)])
@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_an_epoch_visits_every_window_exactly_once(
    num_tokens: int, length: int, epoch: int
) -> None:
    order = SampleOrder(num_tokens, length, seed=3)
    samples = epoch * order.windows_per_epoch + np.arange(order.windows_per_epoch)
    starts = order.starts(samples)
    windows, phases = np.divmod(starts, length)
    assert len(set(phases.tolist())) == 1
    assert sorted(windows.tolist()) == list(range(order.windows_per_epoch))
    assert starts.min() >= 0
    assert starts.max() + length + 1 <= num_tokens


def test_an_epoch_misses_fewer_than_two_windows_of_tokens() -> None:
    order = SampleOrder(10_037, 64, seed=9)
    seen = np.zeros(order.num_tokens, int)
    for start in order.starts(np.arange(order.windows_per_epoch)).tolist():
        seen[start : start + 64] += 1
    assert seen.max() == 1
    assert (seen == 0).sum() < 2 * 64


def test_epochs_and_seeds_differ() -> None:
    def first(seed: int, epoch: int) -> list[int]:
        order = SampleOrder(100_000, 100, seed)
        return order.starts(epoch * order.windows_per_epoch + np.arange(20)).tolist()

    assert first(1, 0) != first(1, 1)
    assert first(1, 0) != first(2, 0)
    assert first(1, 0) == first(1, 0)


def test_the_order_is_frozen() -> None:
    """A run that goes on with a newer version must see the samples it would have seen."""
    order = SampleOrder(1_000_000, 128, seed=42)
    assert order.starts(np.array([0, 1, 2, 7811, 7812, 123_456_789])).tolist() == GOLDEN_STARTS


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_any_number_of_ranks_sees_the_same_set_a_step(world_size: int) -> None:
    dealings = [Dealing(16, 8 // world_size, rank, world_size) for rank in range(world_size)]
    samples = np.concatenate([run for dealing in dealings for run in dealing.own_samples(160)])
    assert sorted(samples.tolist()) == list(range(160, 176))


def test_samples_reading_is_the_inverse_of_starts() -> None:
    order = SampleOrder(20_011, 37, seed=5)
    samples = 2 * order.windows_per_epoch + np.arange(order.windows_per_epoch)
    starts = order.starts(samples)
    for start, stop in [(0, 1), (19_000, 19_900), (500, 501), (0, 20_011), (20_010, 20_011)]:
        overlaps = (starts < stop) & (starts + 38 > start)
        assert order.samples_reading(start, stop, epoch=2).tolist() == samples[overlaps].tolist()


@pytest.mark.parametrize("size", [1, 2, 3, 10, 1_000_003])
def test_the_permutation_can_be_inverted(size: int) -> None:
    permutation = Permutation(size, derive_keys(7, 0)[1:])
    places = np.arange(min(size, 5000), dtype=np.int64)
    assert permutation.invert(permutation.apply(places)).tolist() == places.tolist()


def test_the_permutation_looks_random() -> None:
    """Batches of 512 spread over 64 parts of the corpus as chance would spread them."""
    size = 1_000_003
    windows = Permutation(size, derive_keys(1, 0)[1:]).apply(np.arange(512 * 1000))
    parts = (windows * 64 // size).reshape(1000, 512)
    counts = np.stack([np.bincount(batch, minlength=64) for batch in parts])
    chi2_per_degree = ((counts - 8) ** 2 / 8).sum() / (1000 * 63)
    assert 0.97 < chi2_per_degree < 1.03
    steps = np.diff(windows)
    assert len(np.unique(steps)) > 0.75 * len(steps)


def test_too_few_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="the split has 199 tokens; windows of"):
        SampleOrder(199, 100, seed=0)

"""The batches of up to 64 ranks: each sample once, by the rank and in the order it is dealt."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from shards import files
from shards.format import Shard
from shards.order import SampleOrder
from shards.reader import TokenStream
from train import batches
from train.batches import Batches, Dealing, Places

LENGTH = 8
VOCAB_SIZE = 60_000
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 shards of 400 tokens."""
    folder = tmp_path_factory.mktemp("set")
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, (300, 400))
    for shard, part in zip(list_shards(), tokens, strict=True):
        part.astype("<u2").tofile(folder / shard.name)
    return folder


def list_shards() -> list[Shard]:
    return [Shard("train", f"train-{number:05d}.bin", 400, 0, "") for number in range(300)]


def open_stream(folder: Path) -> TokenStream:
    return TokenStream(folder, list_shards(), VOCAB_SIZE)


def open_batches(folder: Path, dealing: Dealing, consumed: int) -> Batches:
    stream = open_stream(folder)
    order = SampleOrder(stream.num_tokens, LENGTH, seed=5)
    return Batches(stream, order, dealing, CPU, consumed)


def deal(batch_size: int, accumulation_steps: int, ranks: int) -> list[Dealing]:
    """How each of the ranks takes its part of a step."""
    per_step = batch_size * accumulation_steps * ranks
    return [Dealing(per_step, accumulation_steps, rank, ranks) for rank in range(ranks)]


# Samples of a micro-step on a rank, micro-steps, ranks; all of a step of 256.
SHAPES = [(4, 1, 64), (16, 8, 2), (1, 4, 64), (4, 64, 1), (8, 2, 16)]


@pytest.mark.parametrize("shape", [*SHAPES, (3, 5, 64), (1, 1, 63)])
def test_each_sample_is_dealt_once_micro_step_by_micro_step_and_rank_by_rank(
    shape: tuple[int, int, int],
) -> None:
    batch_size, accumulation_steps, ranks = shape
    dealings = deal(*shape)
    per_step = batch_size * accumulation_steps * ranks
    for consumed in (0, per_step, 10**12):
        owners = {}
        for dealing in dealings:
            samples = np.stack(dealing.own_samples(consumed))
            assert samples.shape == (accumulation_steps, batch_size)
            assert (np.diff(samples.ravel()) > 0).all()
            for (micro_step, place), sample in np.ndenumerate(samples):
                assert sample not in owners
                owners[int(sample)] = (micro_step, dealing.rank, place)
        assert sorted(owners) == list(range(consumed, consumed + per_step))
        assert [owners[sample] for sample in sorted(owners)] == sorted(owners.values())


def read_step(ranks: Sequence[Batches]) -> npt.NDArray[np.int64]:
    """A step's windows in the order of their samples: (samples, T + 1)."""
    micro_steps = [
        np.stack([join(*batch) for batch in micro_step])
        for micro_step in zip(*(rank.next_step() for rank in ranks), strict=True)
    ]
    return np.concatenate(micro_steps).reshape(-1, LENGTH + 1)


def join(
    tokens: torch.Tensor, targets: torch.Tensor, labels: torch.Tensor | None
) -> npt.NDArray[np.int64]:
    """The windows that tokens and targets came from."""
    assert labels is None
    assert tokens.dtype == targets.dtype == torch.int64
    assert torch.equal(tokens[:, 1:], targets[:, :-1])
    return torch.cat([tokens, targets[:, -1:]], dim=1).numpy()


def read_run(
    folder: Path, starts: Sequence[tuple[int, int, int]]
) -> Iterator[npt.NDArray[np.int64]]:
    """The steps of a run that starts again, two steps later, with another shape."""
    consumed = 0
    for shape in starts:
        ranks = [open_batches(folder, dealing, consumed) for dealing in deal(*shape)]
        yield read_step(ranks)
        yield read_step(ranks)
        for rank in ranks:
            assert len(rank.stream.files.files) <= files.MOST_OPEN
            rank.close()
            assert not rank.stream.files.files
        consumed = ranks[0].consumed


def test_a_change_of_ranks_and_shapes_in_between_changes_no_step(folder: Path) -> None:
    """What 64 ranks, 16, 2 and 1 read, one after the other, is what one rank reads."""
    changing = list(read_run(folder, SHAPES))
    single = list(read_run(folder, [(256, 1, 1)] * len(SHAPES)))
    stream = open_stream(folder)
    order = SampleOrder(stream.num_tokens, LENGTH, seed=5)
    assert order.windows_per_epoch > 256 * len(changing)
    for step, (one, other) in enumerate(zip(changing, single, strict=True)):
        starts = order.starts(np.arange(256 * step, 256 * (step + 1)))
        assert one.tolist() == other.tolist() == stream.windows(starts, LENGTH + 1).tolist()


def test_of_many_ranks_each_touches_only_the_files_of_its_samples(folder: Path) -> None:
    order = SampleOrder(open_stream(folder).num_tokens, LENGTH, seed=5)
    touched = set()
    for dealing in deal(4, 1, 64):
        rank = open_batches(folder, dealing, consumed=0)
        next(rank.next_step())
        rank.ahead.result()  # The second step, read ahead.
        rank.close()
        own_samples = [run for consumed in (0, 256) for run in dealing.own_samples(consumed)]
        starts = order.starts(np.concatenate(own_samples))
        own = {int(place) // 400 for start in starts for place in (start, start + LENGTH)}
        assert set(rank.stream.written) == own
        assert len(own) <= 16
        touched |= own
    assert len(touched) > 200


@pytest.mark.parametrize("shape", [(2, 2, 3), (1, 1, 1), (5000, 1, 2)])
def test_places_are_found_for_many_steps_and_are_those_of_each(
    shape: tuple[int, int, int],
) -> None:
    """Also over the end of an epoch, and for a step that does not follow the one before."""
    order = SampleOrder(100_000, LENGTH, seed=1)
    for dealing in deal(*shape):
        places = Places(order)
        per_step = dealing.samples_per_step
        jumps = [*range(0, 20_000, max(per_step, 700) // per_step * per_step), per_step, 7, 7]
        for consumed in jumps:
            expected = order.starts(np.concatenate(dealing.own_samples(consumed)))
            assert places.take(consumed, dealing).tolist() == expected.tolist()


@pytest.mark.parametrize("token_bytes", [2, 4])
def test_a_gpu_gets_narrow_ids_and_widens_them_exactly(
    tmp_path: Path, token_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocab_size = {2: 1 << 16, 4: 1 << 31}[token_bytes]
    ids = np.random.default_rng(0).permutation(1 << 16) * (vocab_size >> 16) + vocab_size // 70_000
    shard = Shard("train", "train-00000.bin", len(ids), 0, "", token_bytes)
    ids.astype(shard.dtype).tofile(tmp_path / shard.name)
    stream = TokenStream(tmp_path, [shard], vocab_size)
    places = np.arange(0, len(ids), 1024)
    if not torch.cuda.is_available():  # Then memory cannot be pinned, and all else is the same.
        empty = torch.empty
        monkeypatch.setattr(
            torch, "empty", lambda *size, pin_memory, **options: empty(*size, **options)
        )
    windows = batches.read_pinned(stream, places, 1024)
    assert windows.element_size() == token_bytes
    device = "cuda" if torch.cuda.is_available() else "cpu"
    wide = windows.to(device, non_blocking=True).to(torch.int64).cpu()
    assert wide.ravel().tolist() == ids.tolist()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gets_the_batches_of_a_cpu(folder: Path) -> None:
    dealing = Dealing(24, 3, rank=1, world_size=2)
    stream = open_stream(folder)
    order = SampleOrder(stream.num_tokens, LENGTH, seed=5)
    on_gpu = Batches(open_stream(folder), order, dealing, torch.device("cuda", 0), consumed=0)
    on_cpu = Batches(stream, order, dealing, CPU, consumed=0)
    for _ in range(50):
        for (tokens, targets, _), (others, their_targets, _) in zip(
            on_gpu.next_step(), on_cpu.next_step(), strict=True
        ):
            assert torch.equal(tokens.cpu(), others)
            assert torch.equal(targets.cpu(), their_targets)
    on_gpu.close()
    on_cpu.close()

"""Windows from token shards as batches: our Batches against nanoGPT's way and torch's DataLoader.

velocity     train.batches.Batches.next_step: the run's own path, a thread reads one step ahead
nanogpt      np.memmap, random offsets, torch.stack of one int64 copy per window
dataloader   torch's DataLoader over a Dataset of windows, shuffled, with its default collation

All give batches of B windows of T + 1 tokens from the same .bin, as (tokens, targets), (B, T) each,
to a consumer that only counts them; in training, the model's step runs alongside the reading
thread.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.measure import (
    OURS,
    Engine,
    Figures,
    Measured,
    make_parser,
    print_result,
    run_script,
    say,
    take_turns,
)
from shards.format import Shard
from shards.order import SampleOrder
from shards.reader import TokenStream
from shards.widths import Tokens
from train.batches import Batches, Dealing

VOCAB_SIZE = 50257
PACKAGES = ("torch", "numpy")

Batch = tuple[Tensor, Tensor]


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = make_parser("Windows from token shards, beside nanoGPT's way and DataLoader.")
    parser.add_argument("--tokens", type=int, default=20_000_000, help="in the .bin, random")
    parser.add_argument("--batch-size", type=int, default=8, help="windows of a micro-step")
    parser.add_argument("--accumulation-steps", type=int, default=4, help="micro-steps of a step")
    parser.add_argument("--max-seq-length", type=int, default=1024, help="tokens of a sample")
    parser.add_argument("--seconds", type=float, default=2.0, help="of an engine in a round")
    parser.add_argument("--dataloader-workers", type=int, default=0, help="processes of DataLoader")
    parser.add_argument("--seed", type=int, default=0, help="of the order")
    return parser.parse_args()


def main() -> None:
    """Check that all read the same windows, measure, print the line."""
    options = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="benchmark-loader-") as name:
        stream = write_tokens(Path(name), options)
        path = stream.folder / stream.shards[0].name
        compare_windows(stream, path, options)
        say(f"{options.tokens:,} tokens in {path.name}; all engines read the same windows from it")
        engines = [
            Engine(OURS, (), lambda: start(read_velocity(stream, options), options)),
            Engine("nanogpt", (), lambda: start(read_nanogpt(path, options), options)),
            Engine("dataloader", (), lambda: start(read_dataloader(path, options), options)),
        ]
        results = take_turns(engines, options, check_shapes)
    work = {"windows_of_tokens": options.max_seq_length + 1, "file_bytes": 2 * options.tokens}
    print_result("shards.loader", options, work, results, {"windows_equal": True}, PACKAGES)


def write_tokens(folder: Path, options: argparse.Namespace) -> TokenStream:
    """Write a .bin of random ids; returns it as a split of that one shard."""
    random = np.random.default_rng(options.seed)
    ids = random.integers(0, VOCAB_SIZE, options.tokens, np.uint16)
    ids.astype("<u2", copy=False).tofile(folder / "train-00000.bin")
    return TokenStream(
        folder, [Shard("train", "train-00000.bin", options.tokens, 0, "")], VOCAB_SIZE
    )


def make_order(options: argparse.Namespace) -> SampleOrder:
    """The order in which a run with this seed reads the .bin."""
    return SampleOrder(options.tokens, options.max_seq_length, options.seed)


def read_velocity(stream: TokenStream, options: argparse.Namespace) -> Iterator[Batch]:
    """Our batches, endlessly."""
    num_samples = options.batch_size * options.accumulation_steps
    dealing = Dealing(num_samples, options.accumulation_steps, rank=0, world_size=1)
    batches = Batches(stream, make_order(options), dealing, torch.device("cpu"), consumed=0)
    try:
        while True:
            yield from ((batch.tokens, batch.targets) for batch in batches.next_step())
    finally:
        batches.close()


def read_nanogpt(path: Path, options: argparse.Namespace) -> Iterator[Batch]:
    """Batches at independent random offsets; the file is mapped again each time, as in nanoGPT."""
    random = torch.Generator().manual_seed(options.seed)
    length = options.max_seq_length
    while True:
        tokens = np.memmap(path, "<u2", "r")
        offsets = torch.randint(
            len(tokens) - length, (options.batch_size,), generator=random
        ).tolist()
        yield stack_slices(tokens, offsets, length)


def stack_slices(tokens: Tokens, offsets: Iterable[int], length: int) -> Batch:
    """The windows at the offsets, each copied to int64 on its own, and once more for targets."""
    offsets = list(offsets)
    rows = [torch.from_numpy(tokens[i : i + length].astype(np.int64)) for i in offsets]
    nexts = [torch.from_numpy(tokens[i + 1 : i + 1 + length].astype(np.int64)) for i in offsets]
    return torch.stack(rows), torch.stack(nexts)


class Windows(Dataset[Batch]):
    """The windows of a .bin that begin at multiples of T."""

    def __init__(self, path: Path, length: int) -> None:
        self.tokens = np.memmap(path, "<u2", "r")
        self.length = length

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.length

    def __getitem__(self, index: int) -> Batch:
        start = index * self.length
        window = torch.from_numpy(self.tokens[start : start + self.length + 1].astype(np.int64))
        return window[:-1], window[1:]


def read_dataloader(path: Path, options: argparse.Namespace) -> Iterator[Batch]:
    """Shuffled batches of DataLoader, epoch after epoch."""
    loader = DataLoader(
        Windows(path, options.max_seq_length),
        options.batch_size,
        shuffle=True,
        num_workers=options.dataloader_workers,
        persistent_workers=options.dataloader_workers > 0,
        drop_last=True,
        generator=torch.Generator().manual_seed(options.seed),
    )
    while True:
        yield from loader  # Lists of two.


def start(batches: Iterator[Batch], options: argparse.Namespace) -> Callable[[], Measured]:
    """What a round calls: it continues where the last one stopped."""
    shape = (options.batch_size, options.max_seq_length)

    def measure() -> Measured:
        tokens, targets = next(batches)
        figures = count_batches(batches, options)
        return Measured(figures, [tokens.shape == shape, targets.shape == shape])

    return measure


def count_batches(batches: Iterator[Batch], options: argparse.Namespace) -> Figures:
    """Take batches for `options.seconds`; returns windows and tokens per second.

    Whole steps are taken, because our thread reads ahead one step at a time.
    """
    num_windows, seconds = 0, 0.0
    started = time.perf_counter()
    while seconds < options.seconds:
        for tokens, _ in itertools.islice(batches, options.accumulation_steps):
            num_windows += len(tokens)
        seconds = time.perf_counter() - started
    rate = num_windows / seconds
    return {
        "windows_per_second": rate,
        "tokens_per_second": rate * options.max_seq_length,
    }


def check_shapes(outputs: Mapping[str, list[bool]]) -> None:
    """Assert that all engines gave batches of the same shape."""
    assert all(all(right) for right in outputs.values())


def compare_windows(stream: TokenStream, path: Path, options: argparse.Namespace) -> None:
    """Raise ValueError unless all three give the same tokens for the same windows."""
    length = options.max_seq_length
    order = make_order(options)
    samples = np.arange(min(100, order.windows_per_epoch))
    ours = stream.windows(order.starts(samples), length + 1).astype(np.int64)
    tokens, targets = stack_slices(
        np.memmap(path, "<u2", "r"), order.starts(samples).tolist(), length
    )
    dataset = Windows(path, length)
    aligned = stream.windows(samples * length, length + 1).astype(np.int64)
    pairs = [(ours[:, :-1], tokens.numpy()), (ours[:, 1:], targets.numpy())]
    pairs += [(window[:-1], dataset[i][0].numpy()) for i, window in enumerate(aligned)]
    pairs += [(window[1:], dataset[i][1].numpy()) for i, window in enumerate(aligned)]
    if not all(np.array_equal(mine, other) for mine, other in pairs):
        raise ValueError("the engines read different windows, so no figures are given")


if __name__ == "__main__":
    run_script(main)

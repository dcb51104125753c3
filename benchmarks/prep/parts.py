"""Where the time of `velocity prep` goes, part by part, in one process.

read      parquet decoded, UTF-8 checked          hash      doc_hash of each text
encode    texts to ids                            join      <|endoftext|> after each document
check     a few documents encoded again           write     .bin, sidecar, sha256s, crc32s
commit    fsync, renames, receipts                start     tokenizers loaded

Every part's functions are wrapped with a clock; what they call counts as theirs unless it is a
part too. `other` is the rest: the plan, making the tokenizer, the manifest, Python in between.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import prep.readers.documents
import prep.text.batch
import prep.units.work
from benchmarks.measure import Figures, make_parser, measure_alone, print_result, run_script
from benchmarks.prep.engines import forget_encoders
from prep.policy import Policy
from prep.request import Request
from prep.run import prepare
from prep.tokenizer.encoder import Encoder
from shards.writer import OpenShard, ShardWriter

PARTS = ("read", "encode", "hash", "join", "check", "write", "commit", "start")


class Clock:
    """Seconds by part; a part called by another counts only for itself."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.nested = [0.0]

    def wrap(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time counted for a part."""

        def timed(*arguments: Any, **options: Any) -> Any:
            with self.counting(part):
                return function(*arguments, **options)

        return timed

    def wrap_generator(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same for a function that yields: the time between its yields."""

        def timed(*arguments: Any, **options: Any) -> Iterator[Any]:
            items = function(*arguments, **options)
            while True:
                with self.counting(part):
                    item = next(items, None)
                if item is None:
                    return
                yield item

        return timed

    def counting(self, part: str) -> "Span":
        """A context whose time counts for a part."""
        return Span(self, part)


class Span:
    """A stretch of time that belongs to a part, without the stretches inside it."""

    def __init__(self, clock: Clock, part: str) -> None:
        self.clock, self.part = clock, part

    def __enter__(self) -> None:
        self.started = time.perf_counter()
        self.clock.nested.append(0.0)

    def __exit__(self, *error: object) -> None:
        seconds = time.perf_counter() - self.started
        self.clock.seconds[self.part] += seconds - self.clock.nested.pop()
        self.clock.nested[-1] += seconds


def main() -> None:
    """Measure, and print the line."""
    parser = make_parser("Where the time of prep goes.")
    parser.add_argument("--input", type=Path, action="append", required=True, help="as for prep")
    options = parser.parse_args()
    inputs = tuple(map(str, options.input))
    sizes: list[int] = []

    def measure() -> Figures:
        figures, text_bytes = measure_parts(inputs)
        sizes.append(text_bytes)
        return figures

    results = measure_alone(measure, options)
    work = {"text_bytes": sizes[0], "unit": "milliseconds per 100 MB of text"}
    print_result("prep.parts", options, work, results, {}, ("fastokens", "pyarrow", "numpy"))


def measure_parts(inputs: tuple[str, ...]) -> tuple[dict[str, float], int]:
    """Milliseconds for 100 MB of text by part, and the bytes of text."""
    clock = Clock()
    patches = [
        ("read", prep.units.work, "read_documents", clock.wrap_generator),
        ("encode", Encoder, "encode", clock.wrap),
        ("hash", prep.text.batch, "hash_texts", clock.wrap),
        ("join", prep.text.batch, "join_documents", clock.wrap),
        ("check", prep.units.work, "check_encoding", clock.wrap),
        ("write", ShardWriter, "append", clock.wrap),
        ("commit", OpenShard, "close", clock.wrap),
        ("commit", prep.units.work, "write_pending", clock.wrap),
        ("commit", prep.units.work, "commit_shards", clock.wrap),
        ("commit", prep.units.work, "confirm_pending", clock.wrap),
        ("start", prep.units.work, "load_encoder", clock.wrap),
    ]
    forget_encoders()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for part, owner, name, wrap in patches:
            stack.enter_context(mock.patch.object(owner, name, wrap(part, getattr(owner, name))))
        started = time.perf_counter()
        manifest = prepare(
            Request(Path(folder) / "shards", policy=Policy(), inputs=inputs, workers=1),
            say=lambda line: None,
        )
        whole = time.perf_counter() - started
    text_bytes = int(manifest.audit["text_bytes"])
    seconds = clock.seconds | {"other": whole - sum(clock.seconds.values()), "whole": whole}
    return {part: value * 1000 / (text_bytes / 1e8) for part, value in seconds.items()}, text_bytes


if __name__ == "__main__":
    run_script(main)

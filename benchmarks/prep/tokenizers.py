"""Texts to ids on one core: every shape of tokenizer, each by every encoder, and how exact that is.

fastokens     our Encoder with `fastokens`
tokenizers    our Encoder with `tokenizers`, whose encode_batch_fast runs on one thread
tiktoken      encode_ordinary, for gpt2 only

The shapes are those of the tests, and `own`, which `velocity tokenizer train` makes of the text.
Every text's ids are compared with those that `tokenizers` gives for it alone. A difference is a
figure of its own here, not an error: it says which encoder may be used for which tokenizer.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.measure import (
    Engine,
    Figures,
    Measured,
    collect,
    divide,
    make_parser,
    print_line,
    run_script,
    say,
    take_turns,
)
from benchmarks.prep.texts import COLUMN, Text, add_text_options, read_batches, write_text
from prep.request import ENCODERS
from prep.tokenizer.encoder import Encoder
from prep.vocabulary.request import TrainRequest
from prep.vocabulary.run import train_tokenizer
from shards.disk.json_files import Json
from shards.tokenizer import parse_tokenizer
from tests import vocabularies

OWN = "own"
REFERENCE = "tokenizers"
PACKAGES = ("fastokens", "tokenizers", "tiktoken", "numpy", "pyarrow")

Int64 = np.ndarray[tuple[int], np.dtype[np.int64]]
# Encodes a batch: the ids of all its texts, and how many each has.
Encode = Callable[[pa.Array], tuple[Any, Int64]]


@dataclass(frozen=True)
class Ids:
    """The ids of all texts, and where each text's end."""

    ids: Int64
    ends: Int64


@dataclass(frozen=True)
class Case:
    """A tokenizer and what encodes with it."""

    tokenizer: str
    encoder: str
    # Loads the encoder, or raises.
    load: Callable[[], Encode]

    @property
    def name(self) -> str:
        """What the case is called in a run."""
        return f"{self.tokenizer}/{self.encoder}"


def main() -> None:
    """Measure, compare the ids, print the line."""
    parser = make_parser("Texts to ids on one core, by tokenizer and encoder.")
    add_text_options(parser, megabytes=2.0)
    parser.add_argument(
        "--tokenizer", action="append", choices=vocabularies.NAMES, help="beside own; default: all"
    )
    parser.add_argument("--vocab-size", type=int, default=8192, help="of the one that is trained")
    options = parser.parse_args()
    # Read by `tokenizers` at its first batch.
    os.environ["RAYON_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="benchmark-tokenizers-") as name:
        scratch = Path(name)
        text = write_text(scratch, options)
        say(f"{text.num_documents:,} documents, {text.num_bytes / 1e6:.1f} MB of text")
        batches = [*read_batches([text.path], COLUMN)]
        own, report = train_own(text, scratch, options.vocab_size)
    names = options.tokenizer or vocabularies.NAMES
    files = {name: vocabularies.build(name) for name in names} | {OWN: own}
    cases, left_out = load_cases(files)
    references = {name: encode_alone(content, batches) for name, content in files.items()}
    different: dict[str, int] = {}

    def check(outputs: Mapping[str, Ids]) -> None:
        for case in cases:
            different[case.name] = count_different(outputs[case.name], references[case.tokenizer])

    engines = [Engine(case.name, (), partial(start, case, batches, text)) for case in cases]
    results = take_turns(engines, options, check)
    table = make_table(cases, results.rounds, different, references, text)
    for row in table:
        say(describe_row(row))
    work = {
        "documents": text.num_documents,
        "text_bytes": text.num_bytes,
        "passes_over_the_input": text.num_passes,
        "own": report["held_out"],
    }
    figures = {"work": work, "table": table, "left_out": left_out}
    print_line("prep.tokenizers", options, figures, PACKAGES)


def train_own(text: Text, scratch: Path, vocab_size: int) -> tuple[str, Json]:
    """A tokenizer of the text, made as the command makes it; and its report."""
    out = scratch / OWN
    request = TrainRequest(out, inputs=(str(text.path),), vocab_size=vocab_size)
    report = train_tokenizer(request, say)
    assert report is not None
    return (out / "tokenizer.json").read_text(encoding="utf-8"), report


def load_cases(files: Mapping[str, str]) -> tuple[list[Case], dict[str, str]]:
    """Every tokenizer with every encoder that can load it, and why another cannot."""
    cases = [
        Case(name, encoder, partial(load_ours, content, encoder))
        for name, content in files.items()
        for encoder in ENCODERS
    ]
    if "gpt2" in files:
        cases.append(Case("gpt2", "tiktoken", load_tiktoken))
    ready, left_out = [], {}
    for case in cases:
        try:
            case.load()
        except Exception as error:  # Encoders raise what they like for a tokenizer they cannot.
            left_out[case.name] = str(error).splitlines()[0]
            say(f"{case.name} is left out: {left_out[case.name]}")
        else:
            ready.append(case)
    return ready, left_out


def load_ours(tokenizer_json: str, name: str) -> Encode:
    """Our encoder, with nothing remembered of any text."""
    parse_tokenizer.cache_clear()
    return Encoder(tokenizer_json, name).encode


def load_tiktoken() -> Encode:
    """GPT-2 by tiktoken."""
    from tests.tiktoken_gpt2 import make_encoding

    encoding = make_encoding()

    def encode(texts: pa.Array) -> tuple[Any, Int64]:
        lists = [encoding.encode_ordinary(text) for text in texts.to_pylist()]
        return np.concatenate([np.array(ids, np.uint32) for ids in lists]), count(lists)

    return encode


def count(lists: Sequence[Sequence[int]]) -> Int64:
    """The length of each list."""
    return np.fromiter(map(len, lists), np.int64, len(lists))


def start(case: Case, batches: Sequence[Sequence[str]], text: Text) -> Callable[[], Measured]:
    """Encodes all text with a fresh encoder that remembers no words; loading it is not timed."""
    arrays = [pa.array(batch, pa.large_string()) for batch in batches]

    def measure() -> Measured:
        encode = case.load()
        encode(arrays[0][:1])  # Some build their tables only then.
        started = time.perf_counter()
        found = [encode(array) for array in arrays]
        seconds = time.perf_counter() - started
        ids = Ids(
            np.concatenate([ids for ids, _ in found]).astype(np.int64),
            np.cumsum(np.concatenate([sizes for _, sizes in found])),
        )
        return Measured({"megabytes_per_second": text.num_bytes / 1e6 / seconds}, ids)

    return measure


def encode_alone(tokenizer_json: str, batches: Sequence[Sequence[str]]) -> Ids:
    """The ids that `tokenizers` gives for each text alone."""
    tokenizer = parse_tokenizer(tokenizer_json)
    lists = [
        tokenizer.encode(text, add_special_tokens=False).ids for batch in batches for text in batch
    ]
    ids = np.concatenate([np.array(ids, np.int64) for ids in lists])
    return Ids(ids, np.cumsum(count(lists)))


def split(found: Ids) -> Iterator[bytes]:
    """The ids of each text, as bytes."""
    for ids in np.split(found.ids, found.ends[:-1]):
        yield ids.tobytes()


def count_different(found: Ids, expected: Ids) -> int:
    """How many texts have other ids."""
    return sum(ours != theirs for ours, theirs in zip(split(found), split(expected), strict=True))


def make_table(
    cases: Sequence[Case],
    rounds: Mapping[str, Sequence[Figures]],
    different: Mapping[str, int],
    references: Mapping[str, Ids],
    text: Text,
) -> list[Json]:
    """A row for each case: its rate, that over the rate of `tokenizers`, and how exact it is."""
    rows = []
    for case in cases:
        mine, theirs = rounds[case.name], rounds[f"{case.tokenizer}/{REFERENCE}"]
        ratios = [divide(own, other) for own, other in zip(mine, theirs, strict=True)]
        expected = references[case.tokenizer]
        rows.append(
            {
                "tokenizer": case.tokenizer,
                "encoder": case.encoder,
                "bytes_per_token": round(text.num_bytes / len(expected.ids), 4),
                **collect(mine),
                "over_tokenizers": collect(ratios)["megabytes_per_second"],
                "texts": len(expected.ends),
                "texts_with_other_ids": different[case.name],
            }
        )
    return rows


def describe_row(row: Json) -> str:
    """A row of the table in words."""
    rate, ratio = row["megabytes_per_second"], row["over_tokenizers"]
    return (
        f"{row['tokenizer']:<14} {row['encoder']:<11} {rate['median']:>8.3g} MB/s "
        f"({min(rate['rounds']):.3g} to {max(rate['rounds']):.3g}), "
        f"{ratio['median']:.3g} times tokenizers; "
        f"other ids in {row['texts_with_other_ids']:,} of {row['texts']:,} texts"
    )


if __name__ == "__main__":
    run_script(main)

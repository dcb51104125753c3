"""`--sample FRACTION`: a fraction of the source files, the same ones every time.

The files with the smallest hashes of their names are taken, so a larger fraction takes the same
files and more, and it makes no difference where the data is.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from prep.checks import parse_fraction
from prep.remote.hub_files import HubDataset


class Named(Protocol):
    """A source file, here or in the Hub's repository."""

    @property
    def name(self) -> str: ...


File = TypeVar("File", bound=Named)


def choose_sample(files: Sequence[File], sample: str | None) -> list[File]:
    """A fraction of the files, rounded but at least one, in their order."""
    count = max(round(parse_fraction(sample) * len(files)), 1)
    ranked = sorted(range(len(files)), key=lambda place: hash_name(files[place].name))
    return [files[place] for place in sorted(ranked[:count])]


def sample_dataset(dataset: HubDataset, sample: str | None) -> HubDataset:
    """A Hub dataset with a fraction of its files, and its text size scaled to match."""
    if sample is None:
        return dataset
    files = tuple(choose_sample(dataset.files, sample))
    text_bytes = dataset.num_text_bytes
    if text_bytes is not None:
        total_bytes = sum(file.num_bytes for file in dataset.files)
        text_bytes = text_bytes * sum(file.num_bytes for file in files) // max(total_bytes, 1)
    # The card does not say how many rows these files have.
    return replace(dataset, files=files, num_rows=None, num_text_bytes=text_bytes)


def hash_name(name: str) -> bytes:
    """What a file is chosen by: the sha256 of its name."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()

"""Documents between their files and their tokens: pieces of a file, batches of documents."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from prep.sources.stamp import Stamp
from shards.format import Int64


@dataclass(frozen=True)
class Piece:
    """A part of a source file that is read in one go; a large file is several."""

    path: str  # where to open it
    name: str  # what the data set calls it
    start: int = 0  # parquet: first row group; .jsonl: first byte, where a line starts; else 0
    stop: int | None = None  # the end, exclusive, in the same unit; None = to the end
    first_row: int = 0  # the source row of the piece's first document
    # What the file looks like if it is still the one that was planned; None = not checked.
    stamp: Stamp | None = field(default=None, compare=False)


class Documents(NamedTuple):
    """A batch of documents, in the order of their file: as Arrow arrays, never a list of texts."""

    texts: pa.Array  # large_string, valid UTF-8; null = null in the source
    urls: pa.Array  # string, or null
    rows: Int64  # parquet: row; .jsonl: line; .txt: block; all counted from 0
    repaired: npt.NDArray[np.bool_]  # whether U+FFFD stands for what was invalid in the text
    columns: dict[str, pa.Array]  # the other columns that were asked for

    @property
    def num_bytes(self) -> Int64:
        """The size of each text in UTF-8; 0 for null."""
        offsets = find_offsets(self.texts)
        sizes = offsets[1:] - offsets[:-1]
        if self.texts.null_count:
            sizes[self.texts.is_null().to_numpy(zero_copy_only=False)] = 0
        return sizes

    def filter(self, kept: npt.NDArray[np.bool_]) -> "Documents":
        """The documents that `kept` marks."""
        mask = pa.array(kept)
        return Documents(
            self.texts.filter(mask),
            self.urls.filter(mask),
            self.rows[kept],
            self.repaired[kept],
            {name: values.filter(mask) for name, values in self.columns.items()},
        )

    def first(self, count: int) -> "Documents":
        """The first `count` documents."""
        return Documents(
            self.texts[:count],
            self.urls[:count],
            self.rows[:count],
            self.repaired[:count],
            {name: values[:count] for name, values in self.columns.items()},
        )


def find_offsets(texts: pa.Array) -> Int64:
    """Where each text begins in the array's buffer of bytes, and where the last one ends."""
    offsets = np.frombuffer(texts.buffers()[1], np.int64)
    return offsets[texts.offset : texts.offset + len(texts) + 1]

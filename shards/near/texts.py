"""The signatures of a set's documents: their tokens as text, read shard by shard."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shards.documents import read_pieces
from shards.format import Int64, Shard
from shards.near.signatures import NearSettings, sign_texts
from shards.sidecar import count_tokens
from shards.tokenizer import Spelling
from shards.widths import Tokens


class TokenText:
    """The text of a set's documents, from their ids."""

    def __init__(self, spelling: Spelling) -> None:
        self.spelling = spelling
        self.starts = np.cumsum(spelling.sizes) - spelling.sizes
        self.content = np.frombuffer(b"".join(spelling.inner), np.uint8)

    def spell(self, tokens: Tokens, ends: Int64) -> pa.Array:
        """The texts (large_string) of documents whose tokens end at `ends`.

        A space that the tokenizer put before a text may stand there: words are the same.
        """
        if not self.spelling.adds_up:
            documents = np.split(tokens, ends[:-1]) if len(ends) else []
            return pa.array(map(self.spelling.decode, documents), pa.large_string())
        sizes = self.spelling.sizes[tokens]
        bounds = np.concatenate([[0], np.cumsum(sizes)])
        shifts = self.starts[tokens] - bounds[:-1]
        content = self.content[np.arange(bounds[-1]) + np.repeat(shifts, sizes)]
        offsets = bounds[np.concatenate([[0], ends])]
        buffers = [None, pa.py_buffer(offsets.astype(np.int64)), pa.py_buffer(content)]
        return pa.Array.from_buffers(pa.large_string(), len(ends), buffers)


def sign_shard(
    folder: Path, shard: Shard, text: TokenText, settings: NearSettings
) -> Iterator[npt.NDArray[np.void]]:
    """The signatures of a shard's documents, in order; of removed ones, those of no text."""
    for _, tokens, rows in read_pieces(folder, shard):
        yield sign_texts(text.spell(tokens, np.cumsum(count_tokens(rows))), settings)

"""The signatures of a set's documents: their tokens as text, read shard by shard."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shards.disk.layout import TOKENIZER
from shards.documents import read_pieces
from shards.format import Int64, Shard
from shards.near.signatures import NearSettings, sign_texts
from shards.sidecar import count_tokens
from shards.tokenizer import count_token_bytes, load_tokenizer, read_token_bytes
from shards.widths import Tokens


class TokenText:
    """The bytes that the tokens of the set in `folder` stand for, of a byte-level tokenizer."""

    def __init__(self, folder: Path, end_of_text: int) -> None:
        contents = read_token_bytes(load_tokenizer(folder / TOKENIZER))
        contents[end_of_text] = b""
        self.sizes = count_token_bytes(contents)
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.content = np.frombuffer(b"".join(contents), np.uint8)

    def spell(self, tokens: Tokens, ends: Int64) -> pa.Array:
        """The texts (large_string) of documents whose tokens end at `ends`."""
        sizes = self.sizes[tokens]
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

"""What the sidecar says of chats: where each begins, and which of its tokens are trained on."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from shards.format import Int64, Shard
from shards.rows import SidecarError, read_rows
from shards.schema import PREFERENCES
from shards.sidecar import LOSS_SPANS, REJECTED_START, count_tokens


@dataclass(frozen=True)
class ChatRows:
    """Some rows of a shard of chats; all places are counted from the shard's first token."""

    # Where each document and each stretch of padding begins, and behind them where the last ends.
    bounds: Int64
    # Begin and end of what is trained on: (spans, 2), ascending.
    loss: Int64
    # Begin and end of the rejected halves of pairs: (pairs, 2).
    rejected: Int64


def read_chat_rows(folder: Path, shard: Shard, kind: str) -> Iterator[ChatRows]:
    """The rows of a shard of chats of this kind, in order.

    Raises SidecarError for spans that cannot be those of its documents, as `read_rows` does for
    rows that cannot be those of the shard.
    """
    pairs = [REJECTED_START] * (kind == PREFERENCES)
    for rows in read_rows(folder, shard, ["start", "num_tokens", LOSS_SPANS, *pairs]):
        if not len(rows):
            continue
        starts = rows.column("start").to_numpy().astype(np.int64)
        sizes = count_tokens(rows)
        loss = place_spans(rows, starts, sizes)
        if loss is None:
            fault = f"its column {LOSS_SPANS} has spans that no document has"
            raise SidecarError(folder, shard, fault)
        rejected = np.empty((0, 2), np.int64)
        if pairs:
            column = rows.column(REJECTED_START)
            chosen = column.is_valid().to_numpy(zero_copy_only=False)
            offsets = column.drop_null().to_numpy().astype(np.int64)
            if ((offsets < 1) | (offsets >= sizes[chosen])).any():
                fault = f"its column {REJECTED_START} has a place that is not inside its document"
                raise SidecarError(folder, shard, fault)
            begins = starts[chosen]
            rejected = np.stack([begins + offsets, begins + sizes[chosen]], axis=1)
        yield ChatRows(np.append(starts, starts[-1] + sizes[-1]), loss, rejected)


def place_spans(rows: pa.RecordBatch, starts: Int64, sizes: Int64) -> Int64 | None:
    """The spans of documents that begin at `starts`: (spans, 2); None if they cannot be theirs."""
    column = rows.column(LOSS_SPANS)
    counts = np.diff(column.offsets.to_numpy().astype(np.int64))
    counts[column.is_null().to_numpy(zero_copy_only=False)] = 0
    edges = column.flatten()
    if edges.null_count or (counts % 2).any() or counts.sum() != len(edges):
        return None
    places = edges.to_numpy().astype(np.int64)
    if (places > np.repeat(sizes, counts)).any():
        return None
    placed: Int64 = (places + np.repeat(starts, counts)).reshape(-1, 2)
    # Documents lie one behind another, so that all edges ascend if each document's do.
    is_order = (placed[:, 0] < placed[:, 1]).all() and (placed[1:, 0] >= placed[:-1, 1]).all()
    return placed if is_order else None

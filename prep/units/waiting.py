"""Small batches that wait to be encoded together: a hundred thousand small files are that many.

What a batch costs, however small it is, would be most of the work. Which documents are encoded
together changes no byte.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from prep.readers.batches import MAX_BATCH_BYTES, MAX_BATCH_DOCUMENTS
from prep.readers.documents import Documents, Piece
from prep.text.filters import Choice


class Chosen(NamedTuple):
    """Documents that were read from a piece, and which of them are kept."""

    piece: Piece
    documents: Documents
    choice: Choice
    wanted: Documents  # only those that are kept


class Waiting:
    """Batches in their order, of bounded size together."""

    def __init__(self) -> None:
        self.entries: list[Chosen] = []
        self.num_documents = 0
        self.num_bytes = 0

    def has_room_for(self, wanted: Documents) -> bool:
        """Whether these documents as well are not too many, or too large, to be encoded at once."""
        return (
            self.num_documents + len(wanted.rows) < MAX_BATCH_DOCUMENTS
            and self.num_bytes + int(wanted.num_bytes.sum()) < MAX_BATCH_BYTES
        )

    def add(self, entry: Chosen) -> None:
        """Add the next one."""
        self.entries.append(entry)
        self.num_documents += len(entry.wanted.rows)
        self.num_bytes += int(entry.wanted.num_bytes.sum())

    def take(self) -> list[Chosen]:
        """All of them, which then wait no longer."""
        entries, self.entries = self.entries, []
        self.num_documents = self.num_bytes = 0
        return entries


def join(entries: Sequence[Chosen]) -> tuple[Documents, pa.Array]:
    """The kept documents of several batches as one, without columns; the file of each document."""
    wanted = [entry.wanted for entry in entries]
    names = pa.array([entry.piece.name for entry in entries], pa.string())
    places = np.repeat(np.arange(len(wanted)), [len(documents.rows) for documents in wanted])
    if len(wanted) == 1:
        return wanted[0], names.take(pa.array(places))
    joined = Documents(
        pa.concat_arrays([documents.texts for documents in wanted]),
        pa.concat_arrays([documents.urls for documents in wanted]),
        np.concatenate([documents.rows for documents in wanted]),
        np.concatenate([documents.repaired for documents in wanted]),
        {},
    )
    return joined, names.take(pa.array(places))

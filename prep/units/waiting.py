"""Small batches that wait to be encoded together: a hundred thousand small files are that many.

What a batch costs, however small it is, would be most of the work. Which documents are encoded
together changes no byte.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from prep.readers.batches import MAX_BATCH_BYTES, MAX_BATCH_DOCUMENTS
from prep.readers.documents import Documents, Piece, name_row


class Joined(NamedTuple):
    """Batches one behind another."""

    documents: Documents
    pieces: tuple[Piece, ...]  # of each batch
    row_names: tuple[str, ...]  # likewise: what a row of its file is called
    batches: pa.Array  # int64: which batch each document is of

    @property
    def files(self) -> pa.Array:
        """The name of each document's file."""
        names = pa.array([piece.name for piece in self.pieces], pa.string())
        return names.take(self.batches)

    def find_piece(self, place: int) -> Piece:
        """The piece that a document is of."""
        number: int = self.batches[place].as_py()
        return self.pieces[number]

    def name(self, place: int) -> str:
        """What to call a document in a message."""
        number: int = self.batches[place].as_py()
        row = int(self.documents.rows[place])
        return name_row(self.pieces[number].name, self.row_names[number], row)

    def count_rows(self, num_read: int) -> dict[str, int]:
        """How many of the first documents are of each file."""
        counts = np.bincount(self.batches[:num_read].to_numpy(), minlength=len(self.pieces))
        found: dict[str, int] = {}
        for piece, count in zip(self.pieces, counts.tolist(), strict=True):
            found[piece.name] = found.get(piece.name, 0) + count
        return found


class Waiting:
    """Batches in their order, of bounded size together."""

    def __init__(self) -> None:
        self.entries: list[tuple[Documents, Piece]] = []
        self.num_documents = 0
        self.num_bytes = 0

    def has_room_for(self, documents: Documents) -> bool:
        """Whether these as well are not too many, or too large, to be encoded at once."""
        return (
            self.num_documents + len(documents.rows) < MAX_BATCH_DOCUMENTS
            and self.num_bytes + int(documents.num_bytes.sum()) < MAX_BATCH_BYTES
        )

    def add(self, documents: Documents, piece: Piece) -> None:
        """Add the next ones."""
        self.entries.append((documents, piece))
        self.num_documents += len(documents.rows)
        self.num_bytes += int(documents.num_bytes.sum())

    def take(self) -> Joined:
        """All of them, which then wait no longer; only of a single one the columns are kept."""
        batches, pieces = zip(*self.entries, strict=True)
        self.entries, self.num_documents, self.num_bytes = [], 0, 0
        row_names = tuple(documents.row_name for documents in batches)
        sizes = [len(documents.rows) for documents in batches]
        places = pa.array(np.repeat(np.arange(len(sizes)), sizes))
        if len(batches) == 1:
            return Joined(batches[0], pieces, row_names, places)
        joined = Documents(
            pa.concat_arrays([documents.texts for documents in batches]),
            pa.concat_arrays([documents.urls for documents in batches]),
            np.concatenate([documents.rows for documents in batches]),
            np.concatenate([documents.repaired for documents in batches]),
            {},
            {
                start + place: error
                for start, documents in zip(
                    np.cumsum([0, *sizes[:-1]]).tolist(), batches, strict=True
                )
                for place, error in documents.bad.items()
            },
        )
        return Joined(joined, pieces, row_names, places)

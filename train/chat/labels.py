"""The labels of a run's rows: which tokens are targets, and where documents begin.

Where one of a run's sets is one of chats, the rows of all have labels. Those of plain text say what
such a row is trained for without: all but padding is a target, and documents begin where
model/documents.py finds them, by the end tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from model.documents import Marks, find_firsts
from shards.chat.labels import BEGIN, LOSS, Labels, open_labels
from shards.format import Int64
from shards.mixture.sets import Sets
from shards.reader import Shards

Bits = npt.NDArray[np.uint8]


class Marking(Protocol):
    """What makes labels of rows."""

    def read(self, places: Int64, rows: npt.NDArray[np.generic]) -> Bits:
        """The labels (B, T) of rows (B, T) of tokens that begin at these places of the stream."""


@dataclass(frozen=True)
class ChatMarking:
    """The labels of a set of chats."""

    labels: Labels

    def read(self, places: Int64, rows: npt.NDArray[np.generic]) -> Bits:
        """As the sidecar says; a document's first token is no target, as nothing predicts it."""
        found = self.labels.read(places, rows.shape[1])
        found[(found & BEGIN) != 0] &= ~np.uint8(LOSS)
        return found


@dataclass(frozen=True)
class PlainMarking:
    """The labels of a packed set of plain text."""

    marks: Marks

    def read(self, places: Int64, rows: npt.NDArray[np.generic]) -> Bits:
        """As the tokens say: an end token after another one is padding."""
        del places
        is_end = rows == self.marks.end_of_text
        found = np.full(rows.shape, LOSS, np.uint8)
        found[:, 1:][is_end[:, 1:] & is_end[:, :-1]] = 0
        firsts = find_firsts(torch.from_numpy(rows.astype(np.int64)), self.marks)
        found[firsts.numpy()] |= BEGIN
        return found


@dataclass(frozen=True)
class MixedMarking:
    """The labels of the train splits of several sets, one after another."""

    parts: Sequence[Marking]
    # Where each split begins.
    firsts: Int64

    def read(self, places: Int64, rows: npt.NDArray[np.generic]) -> Bits:
        """Each row's by its set."""
        found = np.zeros(rows.shape, np.uint8)
        owners = np.searchsorted(self.firsts, places, side="right") - 1
        for number in np.unique(owners).tolist():
            own = np.flatnonzero(owners == number)
            found[own] = self.parts[number].read(places[own] - self.firsts[number], rows[own])
        return found


def has_chats(sets: Sets) -> bool:
    """Whether one of a run's sets is one of chats."""
    return any(source.shards.manifest.chat for source in sets.sources)


def open_marking(shards: Shards, split: str) -> Marking:
    """What makes the labels of a split; ValueError if a sidecar of chats is damaged."""
    manifest = shards.manifest
    if manifest.chat is not None:
        return ChatMarking(open_labels(shards, split))
    return PlainMarking(Marks(manifest.end_of_text, manifest.begin_of_text is not None))


def open_chat_marking(shards: Shards, split: str) -> Marking | None:
    """The same of a set of chats; None for another."""
    return open_marking(shards, split) if shards.manifest.chat else None


def open_markings(sets: Sets) -> Marking | None:
    """What makes the labels of a run's rows; None for a run that reads no chats."""
    if not has_chats(sets):
        return None
    sizes = [source.order.num_tokens for source in sets.sources]
    firsts = np.cumsum([0, *sizes[:-1]], dtype=np.int64)
    return MixedMarking([open_marking(source.shards, "train") for source in sets.sources], firsts)

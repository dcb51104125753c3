"""Attention inside documents: what tells the model of a run where they begin."""

from collections.abc import Iterator
from contextlib import contextmanager

from model.documents import Marks
from model.transformer import Transformer
from shards.format import Manifest
from train.config import DataConfig


def separate_documents(model: Transformer, data: DataConfig, manifest: Manifest) -> Transformer:
    """The model, which keeps documents apart in a set's windows if `data.attention` asks for it."""
    model.model.separation.marks = find_marks(data, manifest)
    return model


def find_marks(data: DataConfig, manifest: Manifest) -> Marks | None:
    """What a set's documents are told apart by, if `data.attention` keeps them apart.

    The end token alone says where they are: it stands after each document, and prep and import let
    none be inside one.
    """
    if data.attention != "document":
        return None
    return Marks(manifest.end_of_text, manifest.begin_of_text is not None)


@contextmanager
def separated(model: Transformer, marks: Marks | None) -> Iterator[None]:
    """Within this, the model keeps other documents apart than before, or none."""
    before = model.model.separation.marks
    model.model.separation.marks = marks
    try:
        yield
    finally:
        model.model.separation.marks = before

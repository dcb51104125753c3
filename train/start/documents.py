"""Attention inside documents: what tells the model of a run where they begin."""

from model.documents import Marks
from model.transformer import Transformer
from shards.format import Manifest
from train.config import DataConfig


def separate_documents(model: Transformer, data: DataConfig, manifest: Manifest) -> Transformer:
    """The model, which keeps documents apart in a set's windows if `data.attention` asks for it.

    The end token alone says where they are: it stands after each document, and prep and import let
    none be inside one.
    """
    if data.attention == "document":
        has_begin = manifest.begin_of_text is not None
        model.model.separation.marks = Marks(manifest.end_of_text, has_begin)
    return model

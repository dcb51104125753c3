"""The adapter of a run: put on the model that the run began with, and described in checkpoints."""

from pathlib import Path

from model.adapters.base import Base
from model.adapters.files import describe_adapter
from model.adapters.layers import add_adapter
from model.adapters.rows import list_rows
from model.transformer import Transformer
from shards.disk.json_files import Json
from shards.reader import Shards
from shards.screen.lines import Say, format_plural
from train.begin.settle import find_again
from train.begin.shape import Beginning
from train.checkpoints.position import BEGAN_WITH
from train.checkpoints.resume import Start, is_same_folder
from train.config import Config
from train.ranks.distributed import Rank


def find_adapted(
    config: Config, rank: Rank, shards: Shards, beginning: Beginning | None, start: Start | None
) -> Beginning | None:
    """The folder that the run's model is loaded from: that of model.start for a new run.

    A resumed run has its weights in its checkpoint, except with an adapter, which needs the
    folder again. All ranks call this together. ValueError if other weights are there now.
    """
    if config.training.adapter is None or beginning is not None:
        return beginning
    assert start is not None, "a run without a beginning goes on from a checkpoint"
    return find_again(config, rank, shards, start.state[BEGAN_WITH])


def put_adapter(
    model: Transformer, config: Config, shards: Shards, beginning: Beginning | None, say: Say
) -> None:
    """Put the adapter on the model that settings ask for, if they do.

    Ids of the set that the folder's tokenizer does not have mean nothing to its model: their rows
    are trained, too.
    """
    if beginning is None or config.training.adapter is None:
        return
    known = beginning.known_ids
    assert known is not None, "a run compares its set with the folder"
    new = tuple(range(known, shards.manifest.vocab_size))
    adapter = config.training.make_adapter(new)
    assert adapter is not None
    add_adapter(model, adapter)
    if new:
        count = format_plural(len(new), "token")
        say(
            f"{count} new to {beginning.folder}: trained with the adapter, as rows of the embedding"
        )


def describe_run_adapter(config: Config, model: Transformer, origin: Json) -> dict[str, bytes]:
    """The files of an adapter's checkpoint that say what it is and what it is for; or none.

    `origin` is what the run's state says of the folder that it began with.
    """
    adapter, start = config.training.make_adapter(list_rows(model)), config.model.start
    if adapter is None or start is None:
        return {}
    base = Base(origin["folder"], origin["weights_sha256"])
    # As it was named, unless that is a folder of checkpoints: others need the one that it meant.
    named = start if is_same_folder(Path(start), base.path) else base.path
    return describe_adapter(adapter, base, named, config.model.tie_word_embeddings)

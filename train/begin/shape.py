"""The shape of a folder's model, and what the settings say of it. Needs no torch."""

from dataclasses import dataclass, fields, replace
from pathlib import Path

from model.checkpoints.differences import explaining
from model.checkpoints.hugging_face import QUANTIZATION, read_config_json
from model.checkpoints.seal import (
    CONFIG,
    CheckpointError,
    find_checkpoint,
    is_seed_checkpoint,
    read_json,
)
from model.checkpoints.weight_files import refuse_adapter
from model.config import ModelConfig
from shards.reader import Shards
from shards.screen.names import quote
from shards.screen.url import is_hub_model
from train.begin.same_ids import count_known_ids
from train.config import Config

SETTING = "model.start"
# What a folder's weights do not depend on.
FREE = ("start", "init", "initializer_range")


@dataclass(frozen=True)
class Beginning:
    """The folder that a run begins with."""

    folder: Path
    # As its config.json says.
    shape: ModelConfig
    # Ids that its tokenizer has; its embedding may have more rows. None = no set was compared.
    known_ids: int | None = None


def find_beginning(start: str, shards: Shards | None = None) -> Beginning:
    """The folder that model.start names, compared with the set that a run is to read.

    Raises CheckpointError for a folder whose model cannot be trained here, and ValueError if the
    set's ids are not those of its tokenizer.
    """
    if is_hub_model(start):
        name = start.partition("://")[2].partition("@")[0]
        raise ValueError(
            f"{SETTING} is {start}; expected a folder on this machine, which every restart can "
            f"find; download it first: hf download {name} --local-dir {name}"
        )
    folder = find_checkpoint(Path(start))
    if is_seed_checkpoint(folder):
        raise CheckpointError(
            f"{folder}: a checkpoint of the original VelocityLM; convert it first: velocity "
            f"convert {quote(str(folder))} NEW"
        )
    refuse_adapter(folder)
    values = read_json(folder / CONFIG)
    if values.get(QUANTIZATION) is not None:
        raise CheckpointError(
            f"{folder}: its weights are quantized and cannot be trained; set {SETTING} to the "
            "checkpoint that they were made from"
        )
    with explaining(folder / CONFIG):
        shape = read_config_json(values)
    return Beginning(folder, shape, count_known_ids(folder, shards) if shards else None)


def begin_shape(config: Config, shards: Shards | None = None) -> Config:
    """The settings with the shape of the folder that model.start names, if it names one.

    With rows for all ids of the set. Raises ValueError as `find_beginning` and `take_shape` do.
    """
    if config.model.start is None or not config.model.is_open:
        return config
    found = find_beginning(config.model.start, shards)
    return take_shape(config, grow(found, shards), str(found.folder))


def grow(beginning: Beginning, shards: Shards | None) -> ModelConfig:
    """The folder's shape with a row for each id of the set: more of them, or as many as it has."""
    shape = beginning.shape
    num_ids = 0 if shards is None else shards.manifest.vocab_size
    return replace(shape, vocab_size=max(shape.num_ids, num_ids))


def take_shape(config: Config, shape: ModelConfig, origin: str) -> Config:
    """The settings with this shape, which is that of the folder or the run `origin`.

    Raises ValueError, naming all of them, if settings that are not at their defaults differ.
    """
    asked, differences = config.model, []
    has = {
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_size,
        "rope_original_max_position_embeddings": shape.rope_original,
    }
    for entry in fields(ModelConfig):
        wanted, found = getattr(asked, entry.name), getattr(shape, entry.name)
        found = has.get(entry.name, found)
        if entry.name not in FREE and wanted not in (entry.default, found):
            differences.append(f"model.{entry.name} is {wanted}, but {found} there")
    if differences:
        raise ValueError(
            f"{origin}: {'; '.join(differences)}; leave these settings out, as {SETTING} decides "
            "them, or change the folder with velocity convert"
        )
    model = replace(shape, start=asked.start, init=asked.init)
    return replace(config, model=model)

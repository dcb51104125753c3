"""What a run's sets decide of its settings: ids, length of rows, kind of attention, steps."""

from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from shards.format import Manifest, read_manifest
from shards.order import check_row_tokens
from train.config import Config
from train.start.objective import check_objective

if TYPE_CHECKING:
    from shards.mixture.sets import Sets


def find_length(config: Config) -> int:
    """Tokens of a sample: those of the settings, or where they say auto of a packed set's rows.

    Raises ValueError for a set that is not packed.
    """
    if config.data.max_seq_length:
        return config.data.max_seq_length
    folder = Path(config.data.entries[0].shards)
    return find_row_length(folder, read_manifest(folder))


def find_row_length(folder: Path, manifest: Manifest) -> int:
    """Tokens of a set's rows; ValueError for a set that is not packed."""
    if manifest.row_tokens is None:
        raise ValueError(
            f"data.max_seq_length is auto, but {folder} is not packed in rows of some length; say "
            "how many tokens a sample has"
        )
    return manifest.row_tokens


def fit_model(
    config: Config, folder: Path, manifest: Manifest, others: Sequence[Manifest] = ()
) -> Config:
    """The settings with as many ids as the set has, and the length of its rows.

    `others` are the further sets of a mixture; where one of all is of chats, documents are kept
    apart. A model that began with a folder's may have more ids. Raises ValueError if the settings
    name another number, or windows other than a packed set's rows.
    """
    data = config.data
    if not data.max_seq_length:
        data = replace(data, max_seq_length=find_row_length(folder, manifest))
    if any(each.chat for each in (manifest, *others)):
        data = replace(data, attention="document")
    check_row_tokens(manifest, data.max_seq_length)
    num_ids = manifest.vocab_size
    model = config.model.fit(num_ids)
    has_more = model.start is not None and model.num_ids > num_ids
    if model.vocab_size != num_ids and not has_more:
        raise ValueError(
            f"{folder}: its tokenizer has {num_ids} ids, model.vocab_size is {model.vocab_size}; "
            "set model.vocab_size=auto"
        )
    return replace(config, model=model, data=data)


def fit_sets(config: Config, sets: "Sets", num_ranks: int) -> Config:
    """The same for all sets of a run, and as many steps as training.epochs are on so many ranks."""
    check_objective(config, sets)
    manifests = [source.shards.manifest for source in sets.sources]
    config = fit_model(config, sets.first.folder, manifests[0], manifests[1:])
    windows = [source.order.windows_per_epoch for source in sets.sources]
    return fit_steps(config, windows, num_ranks)


def fit_steps(config: Config, windows_per_epoch: Sequence[int], num_ranks: int) -> Config:
    """The settings with as many steps as training.epochs are, if they say so.

    They are the fewest that read so many of the set's windows. ValueError for several sets.
    """
    epochs = config.training.epochs
    if epochs is None:
        return config
    if len(windows_per_epoch) > 1:
        raise ValueError(
            f"training.epochs is {epochs}, but the {len(windows_per_epoch)} sets of data.mixture "
            "have epochs of their own; set training.num_training_steps, and training.epochs=null"
        )
    wanted = max(ceil(epochs * windows_per_epoch[0]), 1)
    batches = config.list_batches(num_ranks)
    ends = [first for first, _ in batches[1:]]
    for (first, samples), end in zip(batches, ends, strict=False):  # The batch warmup.
        if (end - first) * samples >= wanted:
            return set_steps(config, first + ceil(wanted / samples))
        wanted -= (end - first) * samples
    first, samples = batches[-1]
    return set_steps(config, first + ceil(wanted / samples))


def set_steps(config: Config, num_steps: int) -> Config:
    """The settings with so many steps in place of epochs.

    A run on a small set has few, whose rate is to reach its peak all the same.
    """
    warmup = min(config.training.warmup_steps, num_steps // 10)
    training = replace(
        config.training, num_training_steps=num_steps, warmup_steps=warmup, epochs=None
    )
    return replace(config, training=training)

"""The model's number of ids: that of the set it trains on."""

from dataclasses import replace
from pathlib import Path

from shards.format import Manifest
from shards.order import check_row_tokens
from train.config import Config


def fit_model(config: Config, folder: Path, manifest: Manifest) -> Config:
    """The settings with as many ids as the set has.

    A model that began with a folder's may have more. Raises ValueError if the settings name another
    number, or windows other than a packed set's rows.
    """
    check_row_tokens(manifest, config.data.max_seq_length)
    num_ids = manifest.vocab_size
    model = config.model.fit(num_ids)
    has_more = model.start is not None and model.num_ids > num_ids
    if model.vocab_size != num_ids and not has_more:
        raise ValueError(
            f"{folder}: its tokenizer has {num_ids} ids, model.vocab_size is {model.vocab_size}; "
            "set model.vocab_size=auto"
        )
    return replace(config, model=model)

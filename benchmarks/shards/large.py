"""A set of many shards, without the text for them; and what a rank does at its start."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from shards.disk.layout import MANIFEST, TOKENIZER
from shards.format import SPLITS, Manifest, make_manifest
from shards.mixture.sets import MixedOrder
from train.batches import Batches, Dealing
from train.run import open_checked_sets
from train.settings import load_config


def make_large(manifest: Manifest, small: Path, large: Path, num_units: int) -> None:
    """Make a set of many shards: those of a small one, linked under other names."""
    large.mkdir()
    shutil.copy(small / TOKENIZER, large)
    shards = []
    for split in SPLITS:
        originals = manifest.split(split)
        for unit in range(num_units):
            original = originals[unit % len(originals)]
            shard = replace(original, name=f"{split}-{unit:05d}.bin")
            for old, new in ((original.name, shard.name), (original.sidecar, shard.sidecar)):
                os.link(small / old, large / new)
            shards.append(shard)
    text = make_manifest(manifest.content, shards, manifest.audit, manifest.environment)
    (large / MANIFEST).write_text(text, encoding="utf-8")


def read_first_batch(folder: Path) -> torch.Tensor:
    """A rank's start on a set, to its first batch: (8, 16) tokens."""
    words = [f"data.shards={folder}", "data.max_seq_length=16"]
    sets = open_checked_sets(load_config(None, words))
    stream = sets.stream(checks_first_reads=True)
    sets.first.stream("validation", checks_first_reads=True)
    order = MixedOrder.begin(sets)
    dealing = Dealing(32, accumulation_steps=4, rank=0, world_size=1)
    batches = Batches(stream, order, dealing, torch.device("cpu"), consumed=0)
    tokens = next(batches.next_step()).tokens
    batches.close()
    return tokens

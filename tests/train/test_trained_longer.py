"""A run begins with a checkpoint whose context was made longer, and trains past the old limit."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM

from model.checkpoints.folder import load_model
from model.convert.longer import lengthen
from model.convert.options import Longer, Stretch
from shards.reader import open_shards
from tests.runs import read_metrics
from tests.train.test_model_start import run_from, save_ours

OLD, NEW = 16, 48
LONG = {"data__max_seq_length": NEW, "training__eval_steps": 1, "training__eval_windows": 4}
STILL = {"training__learning_rate": 0, "training__min_learning_rate": 0}


@pytest.mark.parametrize("way", ["theta", "yarn", "llama3", "linear"])
def test_a_run_begins_past_the_old_limit_with_the_loss_of_transformers(
    tiny_shards: Path, tmp_path: Path, way: Stretch
) -> None:
    """And its checkpoints have the longer context, as the folder it began with said it."""
    before = save_ours(tmp_path / "ours", max_position_embeddings=OLD)
    folder = tmp_path / "longer"
    lengthen(before, folder, Longer(NEW, way))
    run_from(tiny_shards, tmp_path, folder, **LONG, **STILL, training__num_training_steps=1)
    windows = open_shards(tiny_shards).stream("validation").read(0, 4 * NEW + 1).astype("int64")
    tokens, targets = torch.from_numpy(windows[:-1]), torch.from_numpy(windows[1:])
    with torch.no_grad():
        logits = LlamaForCausalLM.from_pretrained(folder)(tokens.view(4, NEW)).logits
    expected = float(cross_entropy(logits.flatten(0, 1), targets))
    assert read_metrics(tmp_path, "validation_loss")[1] == pytest.approx(expected, abs=1e-4)
    saved = tmp_path / "checkpoints" / "checkpoint-1"
    assert load_model(saved).config == load_model(folder).config
    old, new = (json.loads((f / "config.json").read_text()) for f in (folder, saved))
    for key in ("max_position_embeddings", "rope_theta", "rope_scaling", "rope_parameters"):
        assert old.get(key) == new.get(key)


def test_a_run_learns_past_the_old_limit(tiny_shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "longer"
    lengthen(save_ours(tmp_path / "ours", max_position_embeddings=OLD), folder, Longer(NEW, "yarn"))
    run_from(tiny_shards, tmp_path, folder, **LONG, training__num_training_steps=12)
    losses = read_metrics(tmp_path, "validation_loss")
    assert losses[12] < losses[1] - 0.3


def test_windows_past_the_context_are_refused_with_what_makes_it_longer(
    tiny_shards: Path, tmp_path: Path
) -> None:
    folder = save_ours(tmp_path / "ours", max_position_embeddings=OLD)
    with pytest.raises(ValueError, match="must be at least as long") as error:
        run_from(tiny_shards, tmp_path, folder, **LONG)
    assert str(error.value).endswith(
        f"; make it so with: velocity convert {folder} NEW --context 48, and set model.start to NEW"
        "; or, for chats, prepare rows that the model can read: velocity prep --chat --pack-tokens "
        f"{OLD}"
    )

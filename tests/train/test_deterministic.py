"""What a step computes is the same each time, on GPUs as well, as far as its operators are."""

from pathlib import Path
from typing import Any

import pytest

from tests.live import Operators
from tests.train.test_chat_runs import ROW as CHAT_ROW
from tests.train.test_chat_runs import make_chats, write_chats
from tests.train.test_dpo_runs import ROW as PAIR_ROW
from tests.train.test_dpo_runs import SETTINGS, as_chat, make_preferences
from tests.train.test_model_start import make_words, save_theirs
from train.loop import train
from train.settings import load_config

# Of those that torch.use_deterministic_algorithms documents, what a language model may call. On
# CUDA they add to one place from several threads, in whatever order these come.
UNORDERED = (
    *("index_add", "index_reduce", "scatter_add", "scatter_reduce", "put_", "bincount", "histc"),
    *("cumsum", "median", "nanmedian", "kthvalue", "_embedding_bag", "repeat_interleave"),
)


def count_operators(shards: Path, out: Path, start: Path, **settings: Any) -> dict[str, int]:
    """Which operators a run of two steps calls, and how often."""
    config = load_config(
        None, make_words(shards, out, start, training__num_training_steps=2, **settings)
    )
    with Operators() as operators:
        train(config)
    return operators.counts


@pytest.mark.parametrize("kind", ["text", "chats", "preferences"])
def test_no_operator_adds_in_an_order_of_its_own(
    tiny_shards: Path, tmp_path: Path, kind: str
) -> None:
    settings: dict[str, Any] = {"training__optimizer": "muon", "data__attention": "document"}
    shards = tiny_shards
    start = save_theirs(tmp_path / "theirs", vocab_size=300 if kind == "text" else 302)
    if kind == "chats":
        shards = tmp_path / "chats"
        write_chats(shards, make_chats(), CHAT_ROW)
        settings = {"data__max_seq_length": CHAT_ROW, "training__adapter": "dora"}
    elif kind == "preferences":
        shards = tmp_path / "pairs"
        write_chats(shards, [as_chat(pair) for pair in make_preferences(40, 0)], PAIR_ROW)
        settings = SETTINGS
    found = count_operators(shards, tmp_path, start, **settings)
    assert found["embedding"] > 0
    assert found["_scaled_dot_product_flash_attention_for_cpu_backward"] > 0
    assert [name for name in found if name.rstrip("_") in UNORDERED] == []

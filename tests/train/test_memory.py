"""The memory that is expected of a run, beside what runs take."""

from pathlib import Path

import pytest

from tests.runs import make_config, make_overrides, read_metrics
from tests.servers.forked import run_ranks
from train.start.memory import estimate_memory

# 17 M parameters; 16 samples of 128 tokens.
WIDE: dict[str, object] = {
    "model__hidden_size": 256,
    "model__num_attention_heads": 4,
    "model__num_hidden_layers": 6,
    "model__intermediate_size": 1024,
    "model__max_position_embeddings": 128,
    "data__max_seq_length": 128,
    "training__batch_size_per_device": 16,
    "training__gradient_accumulation_steps": 1,
    "training__num_training_steps": 3,
    "training__eval_windows": 0,
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"training__batch_size_per_device": 2},
        {"training__activation_checkpointing": "full"},
        {"training__activation_checkpointing": "selective"},
        {"training__precision": "bf16"},
        {"training__gradient_accumulation_steps": 2, "ranks": 2},
        {"training__gradient_accumulation_steps": 2, "ranks": 2, "distributed__strategy": "fsdp"},
    ],
)
def test_a_run_takes_what_was_expected(
    small_shards: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    settings = WIDE | changes
    num_ranks = int(str(settings.pop("ranks", 1)))
    run_ranks(num_ranks, make_overrides(small_shards, tmp_path, **settings))
    measured = max(read_metrics(tmp_path, "memory_bytes").values())
    expected = estimate_memory(make_config(small_shards, tmp_path, **settings), "cpu", num_ranks)
    print(changes, "measured", measured / 1e6, "expected", expected.peak / 1e6, expected)

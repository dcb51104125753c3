"""`velocity quickstart`, cut short: its commands run, and that nothing was learned is told."""

import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from model.checkpoints.folder import save_model
from model.checkpoints.seal import seal
from model.config import ModelConfig
from prep.chat_quickstart import run_chat_quickstart
from prep.quickstart import measure_unigram_entropy
from prep.tokenizer.gpt2 import build_gpt2_json
from shards.reader import open_shards
from tests.tiny import make_model

# Two steps, and a look at little of the validation split.
BASE = ModelConfig(
    vocab_size=50_257,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=256,
)
SHORT = ("training.num_training_steps=2", "training.eval_windows=8")


def test_quickstart_runs_its_commands_and_notices_that_nothing_was_learned(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("raise SystemExit('not this one')")
    process = subprocess.run(
        [sys.executable, "-m", "cli", "quickstart", *SHORT],
        cwd=tmp_path,
        env={"PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    lines = process.stdout.splitlines()
    commands = [line for line in lines if line.startswith("$ ")]
    assert [command.split()[1] for command in commands] == ["velocity", "torchrun", "velocity"]
    assert "documents from Python's own documentation" in lines[0]
    assert any(line.startswith("unigram entropy        6.") for line in lines)
    assert process.returncode == 1
    assert "the model learned nothing" in process.stderr.splitlines()[-1]


def test_the_chat_quickstart_measures_before_and_after_and_notices_that_nothing_was_learned(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "checkpoints" / "checkpoint-1"
    save_model(base, make_model(BASE), build_gpt2_json())
    seal(base)
    short = ("training.epochs=0.02",)
    with pytest.raises(ValueError, match=r"known facts.*0\.0% are right, .*did not learn"):
        run_chat_quickstart(tmp_path, short)
    shown = capfd.readouterr().out
    commands = [
        line.partition("| ")[2] or line[2:] for line in shown.splitlines() if line[:2] == "$ "
    ]
    assert [command.split()[:2] for command in commands] == [
        ["velocity", "eval"],
        ["velocity", "prep"],
        ["torchrun", "--nproc_per_node"],
        ["velocity", "eval"],
        ["velocity", "chat"],
    ]
    assert "--chat" in commands[3]
    [table] = re.findall(r"exact match.*\n(known facts.*)\n(what the question.*)\n", shown)
    for row in table:
        assert re.search(r" \d{3} +0\.0% +[12]\d\.\d% +0\.0%$", row), row


def test_the_unigram_entropy_is_that_of_the_frequencies(small_shards: Path) -> None:
    shards = open_shards(small_shards)
    stream = shards.stream("train")
    ids = stream.read(0, stream.num_tokens).tolist()
    frequencies = [ids.count(token) / len(ids) for token in set(ids)]
    expected = -sum(share * math.log(share) for share in frequencies)
    assert np.isclose(measure_unigram_entropy(shards), expected)

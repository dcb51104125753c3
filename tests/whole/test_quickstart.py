"""`velocity quickstart`, cut short: its commands run, and that nothing was learned is told."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np

from prep.quickstart import measure_unigram_entropy
from shards.reader import open_shards

# Two steps, and a look at little of the validation split.
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


def test_the_unigram_entropy_is_that_of_the_frequencies(small_shards: Path) -> None:
    shards = open_shards(small_shards)
    stream = shards.stream("train")
    ids = stream.read(0, stream.num_tokens).tolist()
    frequencies = [ids.count(token) / len(ids) for token in set(ids)]
    expected = -sum(share * math.log(share) for share in frequencies)
    assert np.isclose(measure_unigram_entropy(shards), expected)

"""Where a run reports: TensorBoard and W&B as they read its log, and its lines on the screen."""

import io
import json
import re
import shutil
import struct
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.runs import make_overrides, read_metrics, run_small
from tests.servers.forked import run_forked

Shards = Path

# TensorBoard


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_opens_on_the_loss(tiny_shards: Shards, tmp_path: Path) -> None:
    """Its page sorts what its server lists by name, and opens the first two groups."""
    from tensorboard import program
    from tensorboard.backend.application import TensorBoardWSGIApp
    from werkzeug.test import Client

    run_small(tiny_shards, tmp_path, training__precision="fp16", training__eval_steps=4)
    board = program.TensorBoard()
    board.configure(logdir=str(tmp_path / "logs"), load_fast="false", reload_interval=0)
    provider, multiplexer = board._make_data_provider()
    app = TensorBoardWSGIApp(
        board.flags, board.plugin_loaders, provider, board.assets_zip_provider, multiplexer
    )
    client = Client(app)
    tags = client.get("/data/plugin/scalars/tags").get_json()["."]
    assert sorted(tags)[:2] == ["loss/train", "loss/validation"]
    groups = list(dict.fromkeys(tag.partition("/")[0] for tag in sorted(tags)))
    assert groups == ["loss", "optimizer", "speed"]
    points = client.get("/data/plugin/scalars/scalars?run=.&tag=loss/train").get_json()
    assert {step: loss for _, step, loss in points} == pytest.approx(read_metrics(tmp_path))


# Weights & Biases


def read_wandb(path: Path) -> Iterator[Any]:
    """The records of a .wandb file, which is a log of LevelDB's form behind seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, whole = path.read_bytes(), 7, b""
    while place < len(content):
        if 32768 - place % 32768 < 7:  # No header fits: the block is filled up.
            place += 32768 - place % 32768
            continue
        _, size, kind = struct.unpack_from("<IHB", content, place)
        whole += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # A whole record, or the last part of one.
            yield Record.FromString(whole)
            whole = b""


def read_history(record: Any) -> dict[str, float]:
    """The names and values of a row."""
    return {i.key or i.nested_key[0]: json.loads(i.value_json) for i in record.history.item}


@pytest.mark.skipif(not find_spec("wandb"), reason="the extra `wandb` is not installed")
def test_a_run_is_one_run_of_wandb_and_has_no_step_twice(
    tiny_shards: Shards, tmp_path: Path
) -> None:
    """Offline, without a key; killed after its checkpoint and before a validation loss."""
    environment = {"WANDB_MODE": "offline", "WANDB_API_KEY": "", "WANDB_ERROR_REPORTING": "false"}
    logs, metrics = tmp_path / "logs", {}
    for changes in ({}, {"training__eval_steps": 4, "training__num_training_steps": 9}):
        settings = {"training__save_steps": 4} | changes
        overrides = make_overrides(tiny_shards, tmp_path, **settings)
        done = run_forked(["train", *overrides], environment=environment)
        assert done.returncode == 0, done.stderr
        assert "cannot be logged" not in done.stderr
        metrics |= read_metrics(tmp_path)
        shutil.rmtree(tmp_path / "checkpoints" / "checkpoint-8")

    files = sorted((logs / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2
    records = [[*read_wandb(path)] for path in files]
    ids = {record.run.run_id for each in records for record in each if record.HasField("run")}
    assert ids == {(logs / "wandb-run-id").read_text().strip()}
    first, second = ([read_history(r) for r in each if r.HasField("history")] for each in records)
    trained = [row for row in [*first, *second] if "loss/train" in row]
    assert [row["step"] for row in trained] == list(range(1, 10))
    assert {row["step"]: row["loss/train"] for row in trained} == metrics
    assert [row["step"] for row in first if "loss/validation" in row] == [8]
    assert [row["step"] for row in second if "loss/validation" in row] == [4, 9]
    assert all(row["step"] == row["_step"] for row in [*first, *second])
    [metric] = [r.metric for r in records[0] if r.HasField("metric") and r.metric.glob_name]
    assert (metric.glob_name, metric.step_metric) == ("*", "step")


# The screen


class Terminal(io.StringIO):
    """A terminal that keeps what was written to it."""

    def isatty(self) -> bool:
        return True

    def show(self) -> list[str]:
        """The lines that are to be seen on it."""
        lines = [""]
        for character in self.getvalue():
            if character == "\n":
                lines.append("")
                column = 0
            elif character == "\r":
                column = 0
            else:
                column = 0 if lines[-1] == "" else column
                lines[-1] = lines[-1][:column] + character + lines[-1][column + 1 :]
                column += 1
        return [line.rstrip() for line in lines]


def test_some_lines_of_the_progress_stay(
    tiny_shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one after every five steps, and the last one; and the validation losses."""
    settings = {"training__num_training_steps": 16, "training__eval_steps": 8}
    settings |= {"training__logging_steps": 2, "training__progress_steps": 5}
    seen = Terminal()
    monkeypatch.setattr(sys, "stderr", seen)
    run_small(tiny_shards, tmp_path, **settings)
    lines = [line for line in seen.show() if line.startswith("step ") and ":" in line]
    shown = [line.split()[1] for line in lines if "tokens" in line or "validation" in line]
    assert shown == ["6/16", "8:", "10/16", "16/16", "16:"]
    stays = [line for line in lines if line.startswith("step 10/16")]
    assert re.fullmatch(
        r"step 10/16  loss .*  lr .*  norm .*  .* tokens/s  0:00:0\d left", stays[0]
    )


def test_a_file_has_all_lines_of_the_progress(
    tiny_shards: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_small(tiny_shards, tmp_path, training__logging_steps=2, training__progress_steps=4)
    lines = capsys.readouterr().err.splitlines()
    shown = [line.split()[1] for line in lines if line.startswith("step ") and "tokens/s" in line]
    assert shown == ["2/8", "4/8", "6/8", "8/8"]

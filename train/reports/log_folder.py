"""A run's log folder: whose log is in it, and what of it stays when a run begins or goes on.

    metrics.jsonl  samples.jsonl  events.out.tfevents.*  wandb-run-id    the log
    bad-steps.jsonl                               its bad steps (train/bad_step.py)
    run-folder                                    the output_dir that it belongs to
    earlier-1/ ...                                logs of other runs, set aside

No line of another run is lost: only what a run wrote itself behind the step that it goes on from is
dropped, since it does these steps again.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shards.disk.durable import write_file
from shards.screen.lines import Say

METRICS = "metrics.jsonl"
BAD_STEPS = "bad-steps.jsonl"
SAMPLES = "samples.jsonl"
# TensorBoard's files.
PATTERN = "events.out.tfevents.*"
WANDB_ID = "wandb-run-id"
RUN_FOLDER = "run-folder"

# A step, and the name of a metric that is logged at it.
Entry = tuple[object, str]


def open_log(folder: Path, output_dir: Path, is_continued: bool, step: int, say: Say) -> set[Entry]:
    """Make `folder` the log of the run in `output_dir`, as it was after `step` steps.

    Returns what was logged of later steps, which the run does again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dropped: set[Entry] = set()
    owner, own = read_owner(folder), name_owner(folder, output_dir)
    if not is_continued or owner not in (None, own):
        set_aside(folder, say)
    else:
        # A log of before runs signed theirs may be another's: then a copy of all of it stays.
        dropped = cut_log(folder, step, keeps_copy=owner is None)
    if owner != own:
        write_file(folder / RUN_FOLDER, own + "\n")
    return dropped


def read_owner(folder: Path) -> str | None:
    """The output_dir that a log belongs to, as seen from its folder; None if it does not say."""
    try:
        return (folder / RUN_FOLDER).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None


def name_owner(folder: Path, output_dir: Path) -> str:
    """A run's output_dir as seen from its log, so that both can move together."""
    try:
        return Path(
            os.path.relpath(os.path.realpath(output_dir), os.path.realpath(folder))
        ).as_posix()
    except ValueError:  # On another drive.
        return Path(os.path.realpath(output_dir)).as_posix()


def set_aside(folder: Path, say: Say) -> None:
    """Move another run's log to earlier-1, ...; TensorBoard shows them separately."""
    names = (METRICS, SAMPLES, BAD_STEPS, WANDB_ID, RUN_FOLDER)
    left = [*(folder / name for name in names), *folder.glob(PATTERN)]
    left = [path for path in left if path.exists()]
    if left:
        aside = make_earlier(folder)
        for path in left:
            os.replace(path, aside / path.name)
        say(f"{folder}: the log of another run is there; it is now in {aside}")


def make_earlier(folder: Path) -> Path:
    """A new folder earlier-N."""
    numbers = [path.name.removeprefix("earlier-") for path in folder.glob("earlier-*")]
    newest = max((int(number) for number in numbers if number.isdigit()), default=0)
    aside = folder / f"earlier-{newest + 1}"
    aside.mkdir()
    return aside


def cut_log(folder: Path, step: int, keeps_copy: bool) -> set[Entry]:
    """Drop the lines after `step`, and half-written ones; returns the metrics in them."""
    dropped: dict[str, list[bytes]] = {}
    aside: Path | None = None
    for path in (folder / METRICS, folder / SAMPLES):
        if not path.exists():
            continue
        lines: dict[bool, list[bytes]] = {True: [], False: []}
        for line in path.read_bytes().splitlines(keepends=True):
            found = read_step(line)
            lines[found is not None and found <= step].append(line)
        if not lines[False]:
            continue
        if keeps_copy:
            aside = aside or make_earlier(folder)
            shutil.copy2(path, aside / path.name)
        write_file(path, b"".join(lines[True]).decode("utf-8"))
        dropped[path.name] = lines[False]
    records = map(read_record, dropped.get(METRICS, ()))
    return {(record["step"], name) for record in records if "step" in record for name in record}


def cut_bad_steps(folder: Path, samples_consumed: int) -> None:
    """Drop the lines of bad-steps.jsonl on steps that start after so many samples.

    Samples are never counted back: those before are behind the run, whatever its step.
    """
    path = folder / BAD_STEPS
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if is_behind(line, samples_consumed)]
    if kept != lines:
        write_file(path, b"".join(kept).decode("utf-8"))


def is_behind(line: bytes, samples_consumed: int) -> bool:
    """Whether a line of bad-steps.jsonl is on a step before so many samples, and a whole one."""
    first = read_record(line).get("first_sample")
    return isinstance(first, int) and first < samples_consumed and line.endswith(b"\n")


def read_step(line: bytes) -> int | None:
    """The step of a line of metrics.jsonl; None if it is not a whole one."""
    record = read_record(line)
    step = record.get("step")
    return step if isinstance(step, int) and line.endswith(b"\n") else None


def read_record(line: bytes) -> dict[str, Any]:
    """What a line of metrics.jsonl holds; nothing if it is not a whole one."""
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def has_metric(folder: Path, step: int, name: str) -> bool:
    """Whether a log has a metric of a step."""
    return any(r.get("step") == step and name in r for r in read_records(folder / METRICS))


def has_samples(folder: Path, step: int, count: int) -> bool:
    """Whether a log has the `count` texts of a step; where it has only some, it drops them."""
    path = folder / SAMPLES
    if not path.exists():
        return False
    lines = path.read_bytes().splitlines(keepends=True)
    others = [line for line in lines if read_step(line) != step]
    if len(lines) - len(others) >= count:
        return True
    if len(others) < len(lines):
        write_file(path, b"".join(others).decode("utf-8"))
    return False


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file of the log; none if it cannot be read."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return
    yield from map(read_record, lines)

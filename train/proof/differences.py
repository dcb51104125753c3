"""What differs between two runs of the same settings: losses, weights, moments, training state.

Read without torch; everything that a run saves is fp32, integers or JSON.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import safe_open

from model.checkpoints.seal import list_weight_files, read_json, read_seal
from train.checkpoints.position import OPTIMIZER, TRAINING_STATE
from train.reports.log_folder import METRICS, read_record


def find_differences(one: Path, other: Path) -> list[str]:
    """One line for each file of two checkpoints that is not the same, bit for bit."""
    names = [*list_weight_files(read_seal(one)), OPTIMIZER]
    lines = [line for name in names if (line := compare_tensors(one / name, other / name))]
    first, second = (read_json(folder / TRAINING_STATE) for folder in (one, other))
    keys = sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))
    if keys:
        lines.append(f"{TRAINING_STATE}: {', '.join(keys)}")
    return lines


def compare_tensors(one: Path, other: Path) -> str | None:
    """How two files of tensors differ; None if they hold the same bits under the same names."""
    with safe_open(one, framework="np") as first, safe_open(other, framework="np") as second:
        names = sorted(first.keys())
        if names != sorted(second.keys()):
            return f"{one.name}: the names of its tensors"
        unlike = []
        for name in names:
            left, right = first.get_tensor(name), second.get_tensor(name)
            if left.shape != right.shape or left.tobytes() != right.tobytes():
                unlike.append((name, measure_difference(left, right)))
    if not unlike:
        return None
    worst, difference = max(unlike, key=lambda entry: entry[1])
    return (
        f"{one.name}: {len(unlike):,} of {len(names):,} tensors, most of all {worst}, by up to "
        f"{difference:.3g}"
    )


def measure_difference(one: npt.NDArray[np.generic], other: npt.NDArray[np.generic]) -> float:
    """The largest difference of two numbers in the same place; infinite if they cannot be told."""
    if one.shape != other.shape:
        return float("inf")
    differences = np.abs(one.astype(np.float64) - other.astype(np.float64))
    return float(differences.max(initial=0)) if np.isfinite(differences).all() else float("inf")


def read_losses(log_folder: Path) -> list[tuple[int, float]]:
    """Each logged step and its loss, in the order of the log."""
    return [*iterate_losses(log_folder / METRICS)]


def iterate_losses(path: Path) -> Iterator[tuple[int, float]]:
    """The same, as they are read."""
    if not path.exists():
        return
    for line in path.read_bytes().splitlines():
        record = read_record(line)
        step, loss = record.get("step"), record.get("loss")
        if isinstance(step, int) and isinstance(loss, float):
            yield step, loss


def find_first_unlike(one: list[tuple[int, float]], other: list[tuple[int, float]]) -> int | None:
    """The first step at which two logs differ; None if they are the same.

    >>> find_first_unlike([(1, 5.0), (2, 4.5)], [(1, 5.0), (2, 4.25)])
    2
    >>> find_first_unlike([(1, 5.0), (2, 4.5)], [(1, 5.0)])
    2
    """
    for left, right in zip(one, other, strict=False):
        if left != right:
            return min(left[0], right[0])
    longer = max(one, other, key=len)[min(len(one), len(other)) :]
    return longer[0][0] if longer else None

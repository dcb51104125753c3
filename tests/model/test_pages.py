"""Weights are in huge pages where there are some, and their memory goes when they go."""

from pathlib import Path

import pytest
import torch

from model import pages
from model.pages import ALIGNMENT, HUGE, REGION_BYTES, Pages

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
has_huge_pages = SETTING.is_file() and "[never]" not in SETTING.read_text("ascii")


def measure(name: str) -> int:
    """Bytes of this process, as Linux counts them under a name."""
    for line in Path("/proc/self/smaps_rollup").read_text("ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(name)


def test_every_weight_has_memory_of_its_own() -> None:
    memory = Pages()
    shapes = [(3, 5), (2**21,), (0,), (7,), (2, 3, 4), (REGION_BYTES // 4 + 1,)]
    kinds = [torch.float32, torch.bfloat16, torch.int8]
    made = [memory.empty(shape, dtype) for shape in shapes for dtype in kinds]
    for number, tensor in enumerate(made):
        tensor.fill_(number)
    for number, tensor in enumerate(made):
        assert (tensor == number).all()
    assert [tuple(tensor.shape) for tensor in made[::3]] == shapes
    assert [tensor.dtype for tensor in made[:3]] == kinds
    assert all(tensor.data_ptr() % ALIGNMENT == 0 for tensor in made)
    assert memory.empty((2, 2), torch.float32, "meta").is_meta


@pytest.mark.skipif(not has_huge_pages, reason="needs Linux with huge pages")
def test_pages_are_huge_and_are_given_back() -> None:
    memory = Pages()
    before, taken = measure("Rss"), measure("AnonHugePages")
    weights = [memory.empty((1024, 1024), torch.float32).fill_(1) for _ in range(32)]
    assert measure("AnonHugePages") - taken >= 2**26
    del weights[1::2]
    assert measure("Rss") - before > 2**26  # A region stays as long as a weight in it.
    weights.clear()
    assert measure("Rss") - before <= REGION_BYTES + 4 * HUGE  # The last one is still open.


def test_without_huge_pages_memory_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "ADVICE", None)
    memory = Pages()
    assert memory.empty((3, 2), torch.int8).shape == (3, 2)
    assert memory._region is None

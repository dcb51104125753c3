"""Products of few rows are torch's, whatever weights are kept as; each row's is its own."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from model import products, rows
from model.int8 import quantize
from model.products import find_max_rows, linear
from model.rows import FUNCTIONS, find_rows

SIZES = [(1, 300, 512), (2, 9, 70), (3, 7, 64), (5, 4, 33), (16, 513, 130)]
needs_compiler = pytest.mark.skipif(find_rows() is None, reason="needs a C compiler")


def make_weight(dtype: torch.dtype, *shape: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    weight = torch.randn(*shape)
    return quantize(weight) if dtype == torch.int8 else (weight.to(dtype), None)


@needs_compiler
@pytest.mark.parametrize("dtype", FUNCTIONS)
@pytest.mark.parametrize(("num_rows", "out_size", "in_size"), SIZES)
def test_products_are_torchs(
    dtype: torch.dtype, num_rows: int, out_size: int, in_size: int
) -> None:
    torch.manual_seed(0)
    x, (weight, scale) = torch.randn(num_rows, in_size), make_weight(dtype, out_size, in_size)
    found = linear(x[None], weight, scale, max_rows=16)[0]
    wide = weight.double() * (1 if scale is None else scale[:, None])
    torch.testing.assert_close(found.double(), x.double() @ wide.T, atol=1e-4, rtol=1e-5)
    # And what is computed for many rows is the same.
    torch.testing.assert_close(linear(x, weight, scale), found, atol=1e-4, rtol=1e-4)


@needs_compiler
@pytest.mark.parametrize("dtype", FUNCTIONS)
def test_a_row_is_the_same_to_the_last_bit_with_any_others(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, (weight, scale) = torch.randn(16, 200), make_weight(dtype, 101, 200)
    alone = torch.cat([linear(row[None], weight, scale, max_rows=1) for row in x])
    for num_rows in range(1, 17):
        together = linear(x[:num_rows], weight, scale, max_rows=16)
        assert torch.equal(together, alone[:num_rows])


@needs_compiler
def test_rows_of_a_larger_tensor_may_be_multiplied() -> None:
    x, weight = torch.randn(3, 5, 64), torch.randn(8, 64)
    torch.testing.assert_close(linear(x[:, -1], weight, max_rows=4), F.linear(x[:, -1], weight))


def test_without_a_compiler_torchs_products_stay(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    weights = [(torch.randn(2048, 1024), None)]
    fake = tmp_path / "cc"
    for text in (None, "#!/bin/sh\nexit 1\n", "#!/bin/sh\nprintf damaged > $4\n"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        if text is not None:
            fake.write_text(text)
            fake.chmod(0o755)
        monkeypatch.setenv("CC", str(fake))
        find_rows.cache_clear()
        try:
            assert find_rows() is None
            assert find_max_rows(weights) == 0
        finally:
            find_rows.cache_clear()


@needs_compiler
def test_a_product_that_is_not_torchs_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
        return F.linear(x, weight.float()) + (weight.dtype == torch.float16)

    assert "float16" in str(rows._find_fault(wrong))
    monkeypatch.setattr(rows, "_bind", lambda library: wrong)
    find_rows.cache_clear()
    try:
        assert find_rows() is None
    finally:
        find_rows.cache_clear()


@needs_compiler
def test_what_is_compiled_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = rows._build()
    written = first.stat().st_mtime_ns
    assert rows._build() == first
    assert first.stat().st_mtime_ns == written
    assert [path.name for path in tmp_path.rglob("*")] == ["velocity", first.name]


@needs_compiler
def test_the_faster_product_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = [(torch.randn(1024, 1024), None)] * 4
    for seconds, expected in (
        ({16: 1.0, 0: 2.0}, 16),
        ({16: 3.0, 8: 3.0, 4: 1.0, 0: 2.0}, 4),
        (dict.fromkeys((16, 8, 4, 2, 1), 3.0) | {0: 2.0}, 0),
    ):
        monkeypatch.setattr(
            products, "_time_products", lambda _, __, max_rows, seconds=seconds: seconds[max_rows]
        )
        assert find_max_rows(weights) == expected
    assert find_max_rows([(torch.randn(8, 8), None)]) == 0

"""The tokens of a set as they are read: which files are open, and what is said at faults."""

import errno
import gc
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from shards import files
from shards.documents import read_pieces
from shards.format import Shard, read_manifest
from shards.inspect.verify import verify_shards
from shards.reader import TokenStream, open_shards
from shards.widths import Tokens

VOCAB_SIZE = 1000


def write_stream(
    folder: Path, sizes: list[int], token_bytes: int = 2
) -> tuple[TokenStream, Tokens]:
    """A split of shards of these sizes, and its tokens."""
    shards = [
        Shard("train", f"train-{number:05d}.bin", size, 0, "", token_bytes)
        for number, size in enumerate(sizes)
    ]
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, sum(sizes))
    stream = TokenStream(folder, shards, VOCAB_SIZE)
    for shard, start in zip(shards, stream.shard_starts.tolist(), strict=False):
        part = tokens[start : start + shard.num_tokens]
        part.astype(shard.dtype).tofile(folder / shard.name)
    return stream, tokens.astype(stream.dtype)


def slices(tokens: Tokens, starts: list[int], count: int) -> list[list[int]]:
    return [tokens[start : start + count].tolist() for start in starts]


def count_open() -> int:
    return len(os.listdir("/dev/fd"))


@pytest.mark.parametrize("token_bytes", [2, 4])
def test_windows_are_read_in_order_of_place_and_returned_as_asked(
    tmp_path: Path, token_bytes: int
) -> None:
    sizes = [*range(1, 40), 0, 0, 5, 300, 0]
    stream, tokens = write_stream(tmp_path, sizes, token_bytes)
    opened: list[int] = []
    open_file = stream.files.open
    stream.files.open = lambda index: opened.append(index) or open_file(index)  # type: ignore
    random = np.random.default_rng(1)
    for count in (1, 7, 90, stream.num_tokens):
        starts = random.integers(0, stream.num_tokens - count + 1, 50)
        opened.clear()
        assert stream.windows(starts, count).tolist() == slices(tokens, starts.tolist(), count)
        if count == 1:  # A longer window goes on into the files that follow.
            assert opened == sorted(set(opened))


def test_a_place_outside_the_split_is_refused(tmp_path: Path) -> None:
    stream, tokens = write_stream(tmp_path, [10, 10])
    assert stream.read(13, 7).tolist() == tokens[13:].tolist()
    assert stream.read(20, 0).tolist() == []
    for start, count in ((14, 7), (-1, 3), (21, 0), (10**30, 1)):
        with pytest.raises(
            ValueError, match=f"tokens {start} to {start + count}; the split has 20"
        ):
            stream.read(start, count)


def test_only_so_many_files_are_open_and_none_when_it_is_done(tmp_path: Path) -> None:
    stream, tokens = write_stream(tmp_path, [3] * 200)
    gc.collect()  # Those of other tests.
    before = count_open()
    assert stream.read(0, stream.num_tokens).tolist() == tokens.tolist()
    assert count_open() - before == files.MOST_OPEN == 64
    stream.close()
    assert count_open() == before
    assert stream.read(5, 4).tolist() == tokens[5:9].tolist()
    assert count_open() > before
    del stream
    assert count_open() == before


def test_what_is_used_again_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_OPEN", 2)
    stream, _ = write_stream(tmp_path, [4, 4, 4])
    for place in (0, 4, 0, 8):
        stream.read(place, 1)
    assert list(stream.files.files) == [0, 2]


def wait_and_read(read_at: Callable[..., int], *arguments: object) -> int:
    """Read when another thread has had its turn."""
    time.sleep(0)
    return read_at(*arguments)


def test_threads_do_not_close_each_others_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MOST_OPEN", 1)
    stream, tokens = write_stream(tmp_path, [50] * 40)

    def read_many(seed: int) -> bool:
        starts = np.random.default_rng(seed).integers(0, stream.num_tokens - 20, 500).tolist()
        return all(
            stream.read(start, 20).tolist() == tokens[start : start + 20].tolist()
            for start in starts
        )

    monkeypatch.setattr(files, "read_at", partial(wait_and_read, files.read_at))
    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(read_many, range(4)))


def test_reads_that_bring_a_part_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As some file systems' do, and any that a signal interrupts."""
    stream, tokens = write_stream(tmp_path, [100, 100])
    read_at = files.read_at
    monkeypatch.setattr(
        files, "read_at", lambda handle, out, start: read_at(handle, out[:7], start)
    )
    assert stream.read(3, 190).tolist() == tokens[3:193].tolist()


def test_windows_are_the_same_where_there_is_no_preadv(tmp_path: Path) -> None:
    _, tokens = write_stream(tmp_path, [9, 9])
    script = (
        "import os; del os.preadv\n"
        "from tests.shards.test_reader import *\n"
        f"print(*write_stream(Path({str(tmp_path)!r}), [9, 9])[0].read(2, 14))"
    )
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert process.stdout.split() == [str(token) for token in tokens[2:16]], process.stderr


def cut_short(path: Path) -> None:
    os.truncate(path, 100)


def grow(path: Path) -> None:
    os.truncate(path, 10**5)


def change_in_place(path: Path) -> None:
    tokens = np.fromfile(path, np.uint16)[::-1]
    with open(path, "r+b") as file:
        file.write(tokens.tobytes())


def replace(path: Path) -> None:
    other = path.with_suffix(".other")
    np.fromfile(path, np.uint16)[::-1].tofile(other)
    other.replace(path)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


ADVICE = "see what else is damaged with: velocity shards verify"
EXPECTED = f"expected 2,000 bytes, as 1,000 ids of uint16; {ADVICE}"
FAULTS: dict[Callable[[Path], None], str] = {
    cut_short: f"has 100 bytes; {EXPECTED}",
    grow: f"has 100,000 bytes; {EXPECTED}",
    change_in_place: f"was written to or replaced since it was first read; {ADVICE}",
    replace: f"was written to or replaced since it was first read; {ADVICE}",
    Path.unlink: f"is missing; {EXPECTED}",
    make_folder: f"is missing; {EXPECTED}",
    make_pipe: f"is missing; {EXPECTED}",
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("is_open", [True, False])
def test_a_file_that_changes_under_a_run_is_named(
    tmp_path: Path, fault: Callable[[Path], None], is_open: bool
) -> None:
    """While it is open, or after it was closed for others."""
    stream, tokens = write_stream(tmp_path, [1000, 1000])
    starts = np.array([0, 1900, 950])
    stream.windows(starts, 100)
    os.utime(tmp_path / "train-00001.bin", ns=(0, 0))  # Before the clock's next tick.
    stream.written.clear()
    stream.windows(starts, 100)
    if not is_open:
        stream.close()
    fault(tmp_path / "train-00001.bin")
    assert stream.read(0, 1000).tolist() == tokens[:1000].tolist()
    if is_open and fault not in (cut_short, grow, change_in_place):
        # The name leads to another file, or to none; what is open is what it was.
        assert stream.windows(starts, 100).tolist() == slices(tokens, starts.tolist(), 100)
        stream.close()
    with pytest.raises(ValueError, match=rf"train-00001\.bin:? {FAULTS[fault]}") as caught:
        stream.windows(starts, 100)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_cut_short_in_the_middle_of_a_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, _ = write_stream(tmp_path, [1000])
    read_at = files.read_at

    def read_and_cut(handle: int, out: memoryview, start: int) -> int:
        num_bytes = read_at(handle, out[:50], start)
        os.truncate(tmp_path / "train-00000.bin", 50)
        return num_bytes

    monkeypatch.setattr(files, "read_at", read_and_cut)
    with pytest.raises(ValueError, match=r"train-00000.bin has 50 bytes; expected 2,000 bytes"):
        stream.read(0, 100)


def test_a_disk_that_fails_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, _ = write_stream(tmp_path, [1000])

    def fail(handle: int, buffers: object, start: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(ValueError, match=r"train-00000.bin: cannot be read \(Input/output error\)"):
        stream.read(0, 100)


def test_too_many_open_files_is_told_in_a_line(tmp_path: Path) -> None:
    stream, _ = write_stream(tmp_path, [1000])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(
            ValueError, match=r"cannot be opened \(Too many open files\); allow more"
        ):
            stream.read(0, 100)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_shard_that_is_cut_short_while_it_is_scanned_is_named(
    small_shards: Path, tmp_path: Path
) -> None:
    """What verify, stats, export and remove read."""
    folder = shutil.copytree(small_shards, tmp_path / "shards")
    shard = read_manifest(folder).shards[0]
    pieces = read_pieces(folder, shard)
    os.truncate(folder / shard.name, 1000)
    with pytest.raises(ValueError, match=rf"{shard.name} has 1,000 bytes; expected"):
        list(pieces)
    faults = {name: fault for name, fault in verify_shards(folder) if fault}
    assert list(faults) == [shard.name]
    assert "has 1,000 bytes" in faults[shard.name]


def test_with_checksums_a_shard_that_only_looks_changed_is_read_on(
    small_shards: Path, tmp_path: Path
) -> None:
    """As one that was touched, so that a cluster does not clear it away, or copied again."""
    folder = shutil.copytree(small_shards, tmp_path / "shards")
    stream = open_shards(folder).stream("train", checks_first_reads=True)
    tokens = stream.read(0, 1000).tolist()
    path = folder / stream.shards[0].name
    os.utime(path, ns=(0, 0))
    assert stream.read(0, 1000).tolist() == tokens
    assert stream.first_reads is not None
    assert not any(stream.first_reads.unread[0])
    with open(path, "r+b") as file:
        file.write(b"\1\0")
    with pytest.raises(ValueError, match=rf"{path.name}: damaged in tokens 0 to"):
        stream.read(2000, 1000)

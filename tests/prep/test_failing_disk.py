"""A disk that fails any one call: one line that names a path; the same command again is right."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.commands import velocity
from tests.texts import make_texts, prepare_quietly, set_bytes, write_jsonl, write_parquet

CALLS = ("mkdir", "replace", "fsync", "unlink", "rmdir")
OPTIONS = ["--unit-bytes", "4000", "--validation-fraction", "0.2", "--workers", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set in shards/, a later version of it in later/, more.jsonl, and ids in n.bin."""
    folder = tmp_path_factory.mktemp("failing")
    texts = make_texts(60)
    write_parquet(folder / "a.parquet", [*texts, *texts[:9]], row_group=20)
    write_jsonl(folder / "more.jsonl", [*make_texts(9, seed=1)])
    np.array([464, 3290, 50256], np.uint16).tofile(folder / "n.bin")
    policy = {"unit_bytes": 4000, "validation_fraction": "0.2", "dedup": "exact"}
    prepare_quietly(folder / "shards", folder / "a.parquet", **policy)
    shutil.copytree(folder / "shards", folder / "later")
    assert (
        velocity("shards", "remove", folder / "later", "--url", "https://example.com/a/3")[0] == 0
    )
    return folder


@contextmanager
def failing(
    monkeypatch: pytest.MonkeyPatch, root: Path, moment: int, code: int
) -> Iterator[list[str]]:
    """The n-th call that changes something below `root` fails; yields the names of the calls."""
    calls: list[str] = []

    def wrap(name: str) -> Callable[..., object]:
        real = getattr(os, name)

        def call(first: object, *others: object, **options: object) -> object:
            path = os.readlink(f"/proc/self/fd/{first}") if name == "fsync" else first
            if str(path).startswith(str(root)):
                calls.append(name)
                if len(calls) == moment:
                    named = () if name == "fsync" else (str(path),)
                    raise OSError(code, os.strerror(code), *named)
            return real(first, *others, **options)

        return call

    with monkeypatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, wrap(name))
        yield calls


COMMANDS = {
    "remove": ("shards", "remove", "OUT", "--url", "https://example.com/a/3"),
    "append": ("prep", "--append", "--out", "OUT", "--input", "more.jsonl", "--dedup", "exact"),
    "import": ("shards", "import", "--out", "OUT", "n.bin"),
    "pull": ("shards", "pull", "SET", "OUT"),
    "pull a version": ("shards", "pull", "LATER", "OUT"),
    "push": ("shards", "push", "SET", "OUT"),
    "dedup": ("prep", "--out", "OUT", "--input", "a.parquet", "--dedup", "exact"),
    "near": ("prep", "--out", "OUT", "--input", "a.parquet", "--dedup", "near"),
}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("kind", COMMANDS)
def test_each_call_that_fails_is_one_line_and_the_same_command_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, code: int
) -> None:
    starts_from_set = kind in ("remove", "append", "pull a version")

    def run(out: Path) -> tuple[int, str]:
        names = {"OUT": out, "SET": folder / "shards", "LATER": folder / "later"}
        names |= {name: folder / name for name in ("a.parquet", "more.jsonl", "n.bin")}
        words = [names.get(word, word) for word in COMMANDS[kind]]
        found, _, errors = velocity(*words, *(OPTIONS if words[0] == "prep" else []))
        return found, errors

    done = tmp_path / "done"
    if starts_from_set:
        shutil.copytree(folder / "shards", done)
    with failing(monkeypatch, done, 0, code) as calls:
        assert run(done)[0] == 0
    total = len(calls)
    assert total > 10
    for moment in range(1 + code % 7, total, max(total // 4, 1)):
        out = tmp_path / f"{moment}"
        if starts_from_set:
            shutil.copytree(folder / "shards", out)
        with failing(monkeypatch, out, moment, code) as calls:
            found, errors = run(out)
        lines = [line for line in errors.splitlines() if line.startswith("velocity: ")]
        # Some failures to tidy up do not matter.
        if found:
            assert len(lines) == 1, errors
            assert str(tmp_path) in lines[0], (calls[-1], lines)
            assert os.strerror(code) in lines[0], (calls[-1], lines)
        found, errors = run(out)
        assert found == 0, (moment, calls, errors)
        assert set_bytes(out) == set_bytes(done), (moment, calls)

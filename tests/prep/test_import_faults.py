"""`velocity shards import` of files that are wrong, or killed: one line, and no set."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prep.foreign.documents import TokenReader
from prep.foreign.text import TextReader
from prep.tokenizer.identity import identify_gpt2
from shards.format import read_manifest
from tests.foreign import (
    END,
    TEXTS,
    bring_in,
    damage,
    ids,
    prepared,
    read_tokens,
    write_llmc,
    write_megatron,
    write_nanogpt,
)
from tests.texts import set_bytes

# Fixtures of all tests of token files.
__all__ = ["ids", "prepared"]


def make_damaged(folder: Path, fault: str, ids: list[list[int]]) -> tuple[list[Path], str]:
    """Files with a fault, and what the user reads."""
    path = folder / "data.bin"
    prefix = folder / "data"
    if fault in ("odd", "cut", "beyond", "shuffled", "twice", "npy"):
        write_nanogpt(path, ids)
    if fault == "odd":
        damage(path, lambda content: content.pop())
        return [path], r"data.bin: has [\d,]+ bytes; expected uint16 ids, two bytes each"
    if fault == "cut":
        damage(path, lambda content: content.__delitem__(slice(-20, None)))
        return [path], r"data.bin: ends in the id \d+; expected 50256, .*--add-end-of-text"
    if fault == "beyond":
        damage(path, lambda content: content.__setitem__(slice(200, 202), b"\x51\xc4"))
        return [path], r"data.bin: token 100 is the id 50257; .* velocity prep"
    if fault == "shuffled":
        letters = {letter: n for n, letter in enumerate(sorted(set("".join(TEXTS))))}
        write_nanogpt(path, [[letters[letter] for letter in text] for text in TEXTS])
        return [
            path
        ], r"data.bin: its ids are not the tokenizer's \(gpt2\): of [\d,]+ that were decoded"
    if fault == "twice":
        return [path, folder / "." / "data.bin"], "is named twice"
    if fault == "npy":
        np.save(folder / "data.npy", np.zeros(10, np.uint16))
        return [folder / "data.npy"], "is a NumPy .npy file; expected"
    if fault == "missing":
        return [folder / "none.bin"], "none.bin: no such file"
    if fault == "llama":
        write_llmc(path, [1, 2], magic=20240801, version=7)
        return [path], r"data.bin: holds llm.c's ids of the Llama 3 tokenizer \(magic 20240801\)"
    if fault == "evaluation":
        write_llmc(path, [1, 2], magic=20240522)
        return [path], "evaluation examples"
    if fault == "version":
        write_llmc(path, [END, 2], version=2)
        return [path], "is of llm.c version 2; expected 1"
    if fault == "llmc short":
        write_llmc(path, [END, *ids[0], 5])
        damage(path, lambda content: content.pop())
        return [path], r"bytes; expected [\d,]+ for the \d+ ids of its header: it is cut"
    if fault == "llmc long":
        write_llmc(path, [END, *ids[0], 5])
        damage(path, lambda content: content.extend(b"ab"))
        return [path], "of its header: it is cut short or damaged"
    write_megatron(prefix, [[document, [END]] for document in ids])
    index = folder / "data.idx"
    changes: dict[str, tuple[Path, Callable[[bytearray], object], str]] = {
        "magic": (index, lambda c: c.__setitem__(0, 0), "data.idx: begins with .*; expected"),
        "old": (index, lambda c: c.__setitem__(slice(0, 8), b"TNTIDX\0\0"), "in the old format"),
        "index version": (index, lambda c: c.__setitem__(9, 2), "data.idx: has version 2"),
        "float": (index, lambda c: c.__setitem__(17, 7), r"ids have type 7 \(float32\)"),
        "index cut": (index, lambda c: c.pop(), r"data.idx: has [\d,]+ bytes; expected"),
        "header alone": (index, lambda c: c.__delitem__(slice(20, None)), "begins with"),
        "size": (index, lambda c: c.__setitem__(34, c[34] ^ 1), "data.idx: says that sequence 1 "),
        "last size": (
            index,
            lambda c: c.__setitem__(34 + 4 * (2 * len(ids) - 1), 9),
            r"data.bin: has [\d,]+ bytes; expected [\d,]+, by data.idx",
        ),
        "bounds": (index, lambda c: c.__setitem__(-8, c[-8] ^ 1), "its document bounds"),
        "bounds down": (index, lambda c: c.__setitem__(-10, 1), "its document bounds decrease"),
        "bin cut": (prefix.with_suffix(".bin"), lambda c: c.pop(), "data.bin: has"),
    }
    damaged, change, expected = changes[fault]
    damage(damaged, change)
    return [prefix], expected


FAULTS = (
    "odd,cut,beyond,shuffled,twice,npy,missing,llama,evaluation,version,llmc short,llmc long,"
    "magic,old,index version,float,index cut,header alone,size,last size,bounds,bounds down,bin cut"
)


@pytest.mark.parametrize("fault", FAULTS.split(","))
def test_a_fault_is_named_and_nothing_is_left(
    tmp_path: Path, ids: list[list[int]], fault: str
) -> None:
    files, expected = make_damaged(tmp_path, fault, ids)
    with pytest.raises(ValueError, match=expected) as error:
        bring_in(tmp_path / "shards", *files)
    assert "\n" not in str(error.value)
    left = list((tmp_path / "shards").glob("*")) if (tmp_path / "shards").exists() else []
    assert [path.name for path in left] in ([], [".prep"])
    assert not (tmp_path / "shards" / ".prep" / "import").exists()


@pytest.mark.parametrize("name", ["data.bin", "data.idx"])
def test_what_stands_for_a_file_is_refused(tmp_path: Path, ids: list[list[int]], name: str) -> None:
    write_megatron(tmp_path / "data", [[document, [END]] for document in ids])
    path = tmp_path / name
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(ValueError, match=f"{name}: is a git-lfs pointer, not the file; git lfs p"):
        bring_in(tmp_path / "shards", tmp_path / "data")
    path.unlink()
    path.symlink_to("not-mounted")
    with pytest.raises(ValueError, match=f"{name}: is a link to not-mounted, which cannot be op"):
        bring_in(tmp_path / "shards", tmp_path / "data.bin")


def test_a_pipe_and_a_name_that_is_not_utf8_are_refused(
    tmp_path: Path, ids: list[list[int]]
) -> None:
    os.mkfifo(tmp_path / "pipe.bin")
    with pytest.raises(ValueError, match=r"pipe.bin: is a pipe; write it to a file first"):
        bring_in(tmp_path / "shards", tmp_path / "pipe.bin")
    write_nanogpt(tmp_path / os.fsdecode(b"caf\xe9.bin"), ids)
    with pytest.raises(ValueError, match=r"caf\\xe9.bin: this name is not UTF-8"):
        bring_in(tmp_path / "shards", tmp_path / os.fsdecode(b"caf\xe9.bin"))


def test_a_format_can_be_insisted_on(tmp_path: Path, ids: list[list[int]]) -> None:
    path = write_nanogpt(tmp_path / "data.bin", ids)
    with pytest.raises(ValueError, match=r"begins with the number .*; expected 20240520"):
        bring_in(tmp_path / "shards", path, format="llmc")
    with pytest.raises(ValueError, match=r"has no data.idx beside it"):
        bring_in(tmp_path / "shards", path, format="megatron")
    with pytest.raises(ValueError, match="--format is 'gpt'; expected one of auto, nanogpt"):
        bring_in(tmp_path / "shards", path, format="gpt")
    bring_in(tmp_path / "shards", path, format="nanogpt")


def test_a_file_without_its_last_end_is_taken_where_that_is_said(
    tmp_path: Path, ids: list[list[int]]
) -> None:
    """nanoGPT's Shakespeare is one text without <|endoftext|>."""
    path = tmp_path / "train.bin"
    np.array(ids[150], "<u2").tofile(path)
    manifest = bring_in(tmp_path / "shards", path, add_end_of_text=True)
    assert read_tokens(tmp_path / "shards") == [*ids[150], END]
    assert manifest.environment["import"]["ends_added"] == 1


def test_a_text_without_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, ids: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prep.foreign.documents.MAX_DOCUMENT_TOKENS", 2000)
    monkeypatch.setattr("prep.foreign.documents.BLOCK_TOKENS", 500)
    path = write_nanogpt(tmp_path / "data.bin", ids)
    with pytest.raises(ValueError, match=r"data.bin: has 2,000 ids in a row without"):
        bring_in(tmp_path / "shards", path)
    prefix = write_megatron(tmp_path / "indexed", [[document] for document in ids])
    with pytest.raises(ValueError, match=r"indexed.bin: has 2,000 ids in a row without"):
        bring_in(tmp_path / "shards", prefix)


def test_a_file_that_changes_meanwhile_is_noticed(
    tmp_path: Path, ids: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_nanogpt(tmp_path / "data.bin", ids)
    read = TokenReader.read

    def read_and_change(reader: TokenReader, count: int) -> Any:
        tokens = read(reader, count)
        with open(path, "ab") as file:
            file.write(b"\x50\xc4")
        return tokens

    monkeypatch.setattr(TokenReader, "read", read_and_change)
    with pytest.raises(ValueError, match=r"data.bin: changed while it was being read"):
        bring_in(tmp_path / "shards", path)


def test_nothing_is_written_over(tmp_path: Path, ids: list[list[int]]) -> None:
    path = write_nanogpt(tmp_path / "train.bin", ids)
    bring_in(tmp_path / "shards", path)
    before = (tmp_path / "shards" / "manifest.json").read_bytes()
    other = write_nanogpt(tmp_path / "other.bin", ids)
    for options in ({"train": other}, {"train": path, "validation_fraction": "0.5"}):
        with pytest.raises(ValueError, match="shards: already holds a set, made of other files or"):
            bring_in(tmp_path / "shards", options.pop("train"), **options)
    other.unlink()
    assert (tmp_path / "shards" / "manifest.json").read_bytes() == before
    with pytest.raises(ValueError, match=r"train.bin: already exists; nothing is overwritten"):
        bring_in(tmp_path, path)
    (tmp_path / "unfinished" / ".prep").mkdir(parents=True)
    (tmp_path / "unfinished" / ".prep" / "plan.json").write_text("{}")
    with pytest.raises(ValueError, match="holds the unfinished set of a velocity prep"):
        bring_in(tmp_path / "unfinished", path)


class KilledError(BaseException):
    """Stands for SIGKILL: from then on no call changes the disk."""


def kill_at(moment: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """End the process, as far as the disk can tell, before its n-th change; the changes so far."""
    calls: list[str] = []

    def wrap(module: Any, name: str) -> None:
        original = getattr(module, name)

        def call(*arguments: Any, **options: Any) -> Any:
            calls.append(name)
            if len(calls) >= moment:
                raise KilledError
            return original(*arguments, **options)

        monkeypatch.setattr(module, name, call)

    for name in ("replace", "unlink", "mkdir", "fsync", "rmdir"):
        wrap(os, name)
    wrap(shutil, "rmtree")
    return calls


def test_a_killed_import_is_done_again_from_any_moment(
    tmp_path: Path, ids: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_nanogpt(tmp_path / "data.bin", ids)
    options: dict[str, Any] = {"validation_fraction": "0.2"}
    dataset_id = bring_in(tmp_path / "whole", path, **options).dataset_id
    reader = TextReader(tmp_path / "whole" / "tokenizer.json", identify_gpt2())
    monkeypatch.setattr("prep.foreign.run.TextReader", lambda *_: reader)
    text = (tmp_path / "whole" / "tokenizer.json").read_text()
    monkeypatch.setattr("prep.tokenizer.choose.build_gpt2_json", lambda: text)
    for moment in range(1, 1000):
        out = tmp_path / str(moment)
        with monkeypatch.context() as patch:
            calls = kill_at(moment, patch)
            try:
                bring_in(out, path, **options)
            except KilledError:
                pass
            else:
                assert len(calls) < moment
                break
        bring_in(out, path, **options)
        assert [path.name for path in (out / ".prep").iterdir()] == ["lock", "lock.holder"]
        assert read_manifest(out).dataset_id == dataset_id
        assert set_bytes(out) == set_bytes(tmp_path / "whole")
    assert moment > 20

"""Which files --input means: folders, patterns, links, hidden names, what stands for a file."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from prep.sources.local import Source, find_sources
from shards.format import read_manifest
from tests.commands import velocity
from tests.texts import prepare_quietly, write_jsonl


def find(*inputs: object) -> tuple[list[str], str]:
    """The names of the files that inputs mean, and the line about the others."""
    lines: list[str] = []
    found = find_sources([str(entry) for entry in inputs], say=lines.append)
    assert len(lines) <= 1
    return [source.name for source in found], "".join(lines)


def write(path: Path, text: str = '{"content": "a"}\n') -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# Folders and patterns


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with files to read and others, at several depths."""
    folder = tmp_path / "in"
    for name in ("b.jsonl", "a.txt", "sub/c.NDJSON", "sub/deep/d.Json.gz", "x.jsonl/part-0.jsonl"):
        write(folder / name)
    for name in ("e.pdf", "sub/f.md", "sub/g.TXT.lz4", "Makefile"):
        write(folder / name)
    for name in ("._a.txt", "_old.jsonl", ".git/c.jsonl", "sub/_SUCCESS", "sub/_temporary/d.txt"):
        write(folder / name)
    return folder


NAMES = ["a.txt", "b.jsonl", "sub/c.NDJSON", "sub/deep/d.Json.gz", "x.jsonl/part-0.jsonl"]


@pytest.mark.parametrize("ending", ["", "/", "/*", "/**", "/**/*", "/**/**"])
def test_a_folder_and_the_patterns_of_all_of_it_are_the_same(tree: Path, ending: str) -> None:
    names, line = find(f"{tree}{ending}")
    assert names == NAMES
    assert line == (
        "7 files and 2 folders left out: .md 1, .pdf 1, .txt.lz4 1, hidden 3, hidden folders 2, "
        "without a suffix 1"
    )


def test_a_pattern_takes_what_it_spells(tree: Path) -> None:
    assert find(tree / "*.jsonl") == (
        ["b.jsonl", "x.jsonl/part-0.jsonl"],
        "1 file left out: hidden 1",
    )
    assert find(tree / "**/*.jsonl")[0] == ["b.jsonl", "x.jsonl/part-0.jsonl"]
    assert find(tree / "*/c.*") == (["c.NDJSON"], "1 folder left out: hidden folders 1")
    assert find(tree / "?.txt") == (["a.txt"], "")
    assert find(tree / "_*.jsonl") == (["_old.jsonl"], "")
    assert find(tree / ".g*/*") == (["c.jsonl"], "")


def test_what_is_named_itself_is_taken(tree: Path) -> None:
    assert find(tree / "_old.jsonl") == (["_old.jsonl"], "")
    assert find(tree / ".git") == (["c.jsonl"], "")
    assert find(tree / "sub/_temporary", tree / "sub")[0] == [
        "_temporary/d.txt",
        "c.NDJSON",
        "deep/d.Json.gz",
    ]


def test_a_name_with_brackets_is_the_file_that_has_it(tmp_path: Path) -> None:
    write(tmp_path / "in/data[1].jsonl")
    assert find(tmp_path / "in/data[1].jsonl")[0] == ["data[1].jsonl"]


def test_nothing_to_read_is_told_with_what_is_there(tmp_path: Path) -> None:
    write(tmp_path / "in/a.pdf")
    with pytest.raises(ValueError, match=r"no file ending in .* \(1 file left out: .pdf 1\)"):
        find(tmp_path / "in")
    with pytest.raises(ValueError, match="no such file or folder, and as a pattern it matches no"):
        find(tmp_path / "in/*.jsonl")
    write(tmp_path / "in/b.tsv", "id\ttext\n")
    reasons = r"2 files left out: .pdf 1, .tsv without the column 'content' 1"
    advice = "; name the right key or column with --text-column"
    with pytest.raises(ValueError, match=rf"in: no file of documents there \({reasons}\){advice}$"):
        find(tmp_path / "in")


def test_a_json_beside_the_data_that_describes_it_is_left_out(tmp_path: Path) -> None:
    write(tmp_path / "in/a.jsonl")
    write(tmp_path / "in/b.json", '{"content": "lines"}\n{"content": "of documents"}\n')
    write(tmp_path / "in/info.json", '{"rows": 3}')
    write(tmp_path / "in/list.json", '[{"content": "a"}]')
    write(tmp_path / "in/other.json", '[{"text": "a"}, {"content": "b"}]')
    write(tmp_path / "in/pretty.json", '{\n  "content": "a"\n}\n')
    names, line = find(tmp_path / "in")
    # What has the key, or cannot be judged, is not passed over: reading it tells what is wrong.
    assert names == ["a.jsonl", "b.json", "list.json", "pretty.json"]
    assert line == "2 files left out: .json without the key 'content' 2"
    with pytest.raises(ValueError, match=r"pretty.json: is JSON over several lines; .* as jq -c"):
        prepare_quietly(tmp_path / "shards", tmp_path / "in/pretty.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"content": "a"', "damaged, cut short"),
        (b'{"content": bad}\n', "line 1: not JSON"),
        ('[{"content": "a"}]'.encode("utf-16"), "is in UTF-16"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git-lfs pointer"),
    ],
)
def test_a_json_that_cannot_be_judged_is_no_silent_loss(
    tmp_path: Path, content: bytes, message: str
) -> None:
    write(tmp_path / "in/a.jsonl", '{"content": "a"}\n')
    (tmp_path / "in/b.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        prepare_quietly(tmp_path / "shards", tmp_path / "in")


def test_a_table_beside_the_data_without_the_column_is_left_out(tmp_path: Path) -> None:
    write(tmp_path / "in/a.jsonl")
    write(tmp_path / "in/b.csv", "id,content\n1,a\n")
    write(tmp_path / "in/info.csv", "id,rows\n1,3\n")
    write(tmp_path / "in/info.TSV", "id\tcontents\n1\ta\n")
    names, line = find(tmp_path / "in")
    assert names == ["a.jsonl", "b.csv"]
    assert line == (
        "2 files left out: .csv without the column 'content' 1, .tsv without the column 'content' 1"
    )
    with pytest.raises(ValueError, match=r"info.csv: no column 'content' in its first line; the c"):
        prepare_quietly(tmp_path / "shards", tmp_path / "in/info.csv")


def test_the_command_says_what_it_leaves_out(tree: Path, tmp_path: Path) -> None:
    for path in tree.rglob("*.gz"):
        path.unlink()
    code, _, errors = velocity("prep", "--input", tree, "--out", tmp_path / "o", "--workers", 1)
    assert code == 0, errors
    assert "7 files and 2 folders left out: .md 1, .pdf 1, .txt.lz4 1, hidden 3, " in errors
    assert len(read_manifest(tmp_path / "o").content["sources"]["files"]) == 4


# Links


def test_links_are_followed_once_and_loops_met_once(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write(folder / "z.jsonl")
    write(tmp_path / "elsewhere/deep/y.jsonl")
    (folder / "again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/deep/up").symlink_to(folder)
    (folder / "self").symlink_to(".")
    for entry in (folder, folder / "*", folder / "**", folder / "**/*.jsonl"):
        names, line = find(entry)
        assert names == ["again/deep/y.jsonl", "z.jsonl"], entry
        assert line == ""


def test_a_file_has_its_own_name_and_not_that_of_a_link_to_it(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write(folder / "real/b.jsonl")
    (folder / "a-link").symlink_to("real")
    (folder / "a.jsonl").symlink_to("real/b.jsonl")
    for entry in (folder, folder / "*"):
        assert find(entry) == (["real/b.jsonl"[5:]], "1 file left out: the same file again 1")
    os.link(folder / "real/b.jsonl", folder / "real/c.jsonl")
    assert find(folder)[0] == ["b.jsonl"]
    assert find(folder)[1] == "2 files left out: the same file again 2"
    assert find(folder / "a.jsonl", folder / "real/b.jsonl")[0] == ["a.jsonl"]


@pytest.mark.parametrize("ending", ["", "/*", "/**/*.jsonl"])
@pytest.mark.parametrize("name", ["gone.jsonl", "folder", "sub/gone.jsonl"])
def test_a_broken_link_is_named(tmp_path: Path, ending: str, name: str) -> None:
    folder = tmp_path / "in"
    write(folder / "sub/a.jsonl")
    (folder / name).symlink_to("../not-mounted")
    with pytest.raises(
        ValueError, match=f"{name}: is a link to ../not-mounted, which cannot be op"
    ):
        find(f"{folder}{ending}")
    (folder / name).unlink()
    (folder / name).symlink_to(folder / name)
    with pytest.raises(ValueError, match=f"{name}: is a link to .*Too many levels of symbolic"):
        find(f"{folder}{ending}")


def test_a_hidden_broken_link_is_left_out(tmp_path: Path) -> None:
    write(tmp_path / "in/a.jsonl")
    (tmp_path / "in/.#a.jsonl").symlink_to("someone@host.4242")
    assert find(tmp_path / "in") == (["a.jsonl"], "1 file left out: hidden 1")


@pytest.mark.parametrize("ending", ["", "/*", "/**/*.jsonl"])
def test_a_folder_that_cannot_be_opened_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    write(tmp_path / "in/a.jsonl")
    write(tmp_path / "in/shut/b.jsonl")
    scan = os.scandir

    def refuse(path: os.PathLike[str]) -> object:  # Root may open any folder.
        if Path(path).name == "shut":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match=r"in/shut: this folder cannot be opened \(Permission"):
        find(f"{tmp_path}/in{ending}")


def test_a_deep_tree_is_walked(tmp_path: Path) -> None:
    folder = tmp_path.joinpath(*["d"] * 600)
    write(folder / "a.jsonl")
    assert find(tmp_path)[0] == ["a.jsonl"]
    assert find(tmp_path / "**/*.jsonl")[0] == ["a.jsonl"]


# Sets of shards


def test_the_set_that_is_made_is_no_source_of_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl")
    options = ("prep", "--input", ".", "--workers", 1, "--validation-fraction", 0)
    for out in ("shards", "."):
        for _ in range(2):  # Again, when the set is finished.
            code, _, errors = velocity(*options, "--out", out)
            assert code == 0, errors
        [file] = read_manifest(Path(out)).content["sources"]["files"]
        assert file["name"] == "a.jsonl"
    assert "finished already" in errors


def test_a_set_that_was_pulled_is_no_source(tmp_path: Path) -> None:
    write(tmp_path / "in/a.jsonl")
    for name in ("manifest.json", "tokenizer.json", "train-00000.docs.parquet", "versions/1.json"):
        write(tmp_path / "in/set" / name)
    for entry in ("in", "in/*", "in/**/*.parquet", "in/**"):
        if entry.endswith("parquet"):
            with pytest.raises(ValueError, match=r"no file ending in .*1 folder left out: sets of"):
                find(tmp_path / entry)
        else:
            found = find(tmp_path / entry)
            assert found == (["a.jsonl"], "1 folder left out: sets of shards 1")
    with pytest.raises(ValueError, match=r"4 files left out: of a set of shards 4"):
        find(tmp_path / "in/set")


# What stands for a file


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".json.gz", ".jsonl.zst", ".parquet"])
@pytest.mark.parametrize(
    ("content", "name"), [(POINTER, "git-lfs"), ("/annex/objects/MD5E-s9--0.txt\n", "git-annex")]
)
def test_a_pointer_is_refused(tmp_path: Path, suffix: str, content: str, name: str) -> None:
    write(tmp_path / "in/good.jsonl")
    write(tmp_path / f"in/book{suffix}", content)
    with pytest.raises(ValueError, match=f"book{suffix}: is a {name} pointer, not the file; git"):
        prepare_quietly(tmp_path / "shards", tmp_path / "in")
    assert not list((tmp_path / "shards").glob("*.bin"))


def test_a_text_about_pointers_is_a_text(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", POINTER + "is what a pointer looks like. " * 100)
    assert prepare_quietly(tmp_path / "shards", tmp_path / "a.txt").audit["documents_read"] == 1


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, pytest.MonkeyPatch.context() as patch:
        patch.chdir(path.parent)  # A socket's path may only be short.
        listener.bind(path.name)


@pytest.mark.parametrize(("make", "kind"), [(os.mkfifo, "pipe"), (make_socket, "socket")])
@pytest.mark.parametrize("entry", ["in/b.jsonl", "in", "in/*.jsonl", "linked.jsonl"])
def test_a_pipe_is_refused_before_a_byte_is_read(
    tmp_path: Path, make: Callable[[Path], None], kind: str, entry: str
) -> None:
    write(tmp_path / "in/a.jsonl")
    make(tmp_path / "in/b.jsonl")
    (tmp_path / "linked.jsonl").symlink_to("in/b.jsonl")
    with pytest.raises(ValueError, match=rf".jsonl: is a {kind}; write it to a file first"):
        find(tmp_path / entry)


def test_devices_and_descriptors_are_refused() -> None:
    with pytest.raises(ValueError, match="/dev/zero: is a device; write it to a file first"):
        find("/dev/zero")
    reader, writer = os.pipe()
    os.write(writer, b'{"content": "a"}\n')
    with pytest.raises(ValueError, match=f"/dev/fd/{reader}: is a pipe; write it to a file first"):
        find(f"/dev/fd/{reader}")
    assert os.read(reader, 100) == b'{"content": "a"}\n'
    with pytest.raises(ValueError, match="--input -: standard input is not read; write it to a fi"):
        find("-")
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("name", [b"caf\xe9.jsonl", b"caf\xe9/a.jsonl"])
def test_a_name_that_is_not_utf8_is_named(tmp_path: Path, name: bytes) -> None:
    write(tmp_path / "in/a.jsonl")
    write(tmp_path / "in" / os.fsdecode(name))
    with pytest.raises(ValueError, match=r"caf\\xe9.*: this name is not UTF-8, .*; rename"):
        find(tmp_path / "in")
    write(tmp_path / os.fsdecode(b"caf\xe9/b.parquet"))
    with pytest.raises(ValueError, match=r"caf\\xe9/b.parquet: this name is not UTF-8, .*; rename"):
        find(tmp_path / os.fsdecode(b"caf\xe9/b.parquet"))


# What is empty


@pytest.mark.parametrize("value", ["", " ", "\t\n"])
def test_an_empty_path_is_refused(tmp_path: Path, value: str) -> None:
    write(tmp_path / "a.txt")
    cases = [
        ("--input", ["prep", "--out", "o", "--input", value]),
        ("--input", ["prep", "--out", "o", "--input", "a.txt", "--input", value]),
        ("--out", ["prep", "--out", value, "--input", "a.txt"]),
        ("--dataset", ["prep", "--out", "o", "--dataset", value]),
        ("--staging", ["prep", "--out", "file:///tmp/x", "--staging", value, "--input", "a.txt"]),
        ("FILE", ["shards", "import", "--out", "o", value]),
        ("--validation", ["shards", "import", "--out", "o", "a.bin", "--validation", value]),
        ("--out", ["shards", "import", "--out", value, "a.bin"]),
        ("--ckpt", ["sample", "--ckpt", value, "--prompt", "a"]),
    ]
    for option, arguments in cases:
        code, _, errors = velocity(*arguments, cwd=tmp_path)
        assert (code, errors.count("\n")) == (1, 1), arguments
        assert errors.startswith(f"velocity: {option} is empty; "), arguments
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


# What stays as it was


def test_an_ordinary_folder_has_the_files_and_the_id_it_always_had(tmp_path: Path) -> None:
    texts = {"b.jsonl": ["b"], "a/z.jsonl": ["z"], "a/b/c.jsonl": ["c", "d"], "A.jsonl": ["big"]}
    for name, lines in texts.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(tmp_path / "in" / name, [*lines])
    write(tmp_path / "in/info.json", json.dumps({"name": "a set"}))
    expected = ["A.jsonl", "a/b/c.jsonl", "a/z.jsonl", "b.jsonl"]
    assert find(tmp_path / "in")[0] == expected
    manifest = prepare_quietly(tmp_path / "shards", tmp_path / "in", validation_fraction="0")
    assert manifest.dataset_id.startswith("31ad34ece50b0508")


def test_sources_do_not_depend_on_where_they_are(tmp_path: Path) -> None:
    write(tmp_path / "x/a.jsonl")
    assert find_sources([str(tmp_path / "x")]) == [
        Source("a.jsonl", 17, path=str(tmp_path / "x/a.jsonl"))
    ]

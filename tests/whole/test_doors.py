"""Every command: URLs that hold keys, names that give orders, errors that nobody expected."""

import io
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from inspect import unwrap
from pathlib import Path
from typing import Any, get_type_hints
from unittest.mock import patch

import pytest

import cli
from prep.vocabulary.command import app as tokenizer_app
from shards.commands import app as shards_app
from shards.entry.failure import prepare_screen
from shards.entry.options import label_paths
from tests.commands import run_main, velocity
from tests.texts import make_texts, write_jsonl
from train.__main__ import main as train_main
from train.__main__ import read_settings
from train.ranks.ending import Ending

KEYS = ("SECRETKEY", "ETKEY")
# Not one of them gets as far as a network.
URLS = [
    "s3://AKIA:SECR/ETKEY@bucket/set",
    "https://u:SECRETKEY@127.0.0.1:9/x",
    "S3://AKIA:SECRETKEY@buck et/x",
    "s3://AKIA:SECRETKEY@bucket/set?unknown=SECRETKEY",
    "s3://AKIA:SECRETKEY@",
    "file://user:SECRETKEY@host/x",
    "AKIA:SECRETKEY@bucket/set",
]
COMMANDS: dict[str, Callable[[str], list[object]]] = {
    "prep-out": lambda url: ["prep", "--out", url, "--input", "a.jsonl"],
    "prep-append": lambda url: ["prep", "--out", url, "--input", "a.jsonl", "--append"],
    "prep-input": lambda url: ["prep", "--out", "new", "--input", url],
    "prep-contained": lambda url: [
        "prep",
        "--out",
        "new",
        "--input",
        "a.jsonl",
        "--drop-contained",
        url,
    ],
    "prep-staging": lambda url: [
        "prep",
        "--out",
        "file:///dev/null/x",
        "--staging",
        url,
        "--input",
        "a.jsonl",
    ],
    "prep-out=": lambda url: ["prep", f"--out={url}", "--input", "a.jsonl"],
    "prep-wrong-option": lambda url: ["prep", "--oot", url],
    "sample": lambda url: ["sample", "--ckpt", url],
    "sample-prompts": lambda url: ["sample", "--ckpt", "none", "--prompt-file", url],
    "convert": lambda url: ["convert", url, "new"],
    "convert-out": lambda url: ["convert", "none", url],
    "quickstart": lambda url: ["quickstart", "--out", url],
    "info": lambda url: ["shards", "info", url],
    "verify": lambda url: ["shards", "verify", url],
    "stats": lambda url: ["shards", "stats", url],
    "stats-plot": lambda url: ["shards", "stats", "SET", "--plot", url],
    "show": lambda url: ["shards", "show", url, "--document", 0],
    "trace": lambda url: ["shards", "trace", url, "--step", 1],
    "trace-run": lambda url: ["shards", "trace", "SET", "--run", url, "--step", 1],
    "trace-config": lambda url: ["shards", "trace", "SET", "--config", url, "--step", 1],
    "trace-setting": lambda url: ["shards", "trace", "SET", "--step", 1, f"data.shards={url}"],
    "remove-file": lambda url: ["shards", "remove", "SET", "--hash-file", url],
    "pull": lambda url: ["shards", "pull", url, "new"],
    "pull-into": lambda url: ["shards", "pull", "SET", url],
    "push": lambda url: ["shards", "push", "SET", url],
    "push-from": lambda url: ["shards", "push", url, "new"],
    "export": lambda url: ["shards", "export", "SET", url],
    "import": lambda url: ["shards", "import", "--out", "new", url],
    "import-out": lambda url: ["shards", "import", "--out", url, "a.jsonl"],
}


@pytest.fixture
def folder(tmp_path: Path, small_shards: Path) -> Path:
    """A folder with a text, and a set of its own beside it."""
    write_jsonl(tmp_path / "a.jsonl", [*make_texts(3)])
    (tmp_path / "SET").symlink_to(small_shards)
    return tmp_path


def assert_clean(text: str) -> None:
    assert not [key for key in KEYS if key in text], text


def list_names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_shows_a_key_or_makes_anything_for_a_wrong_url(
    folder: Path, command: str
) -> None:
    before = list_names(folder)
    for url in URLS:
        code, output, errors = velocity(*COMMANDS[command](url), cwd=folder)
        assert_clean(output + errors)
        assert code, (url, output)
        assert len(errors.splitlines()) == 1 or code == 2, errors
        assert [name for name in list_names(folder) if name not in before] == []


def test_a_file_url_with_a_machine_is_not_taken_for_a_path(folder: Path) -> None:
    """As a Path, it would have lost one slash, and the machine would be a folder."""
    before = list_names(folder)
    url = f"FILE:/{folder}/new"
    for words in (["prep", "--out", url, "--input", "a.jsonl"], ["shards", "push", "SET", url]):
        code, _, errors = velocity(*words, cwd=folder)
        assert code == 1
        assert errors.endswith(": a file URL names no machine; expected file:///folder\n")
    assert list_names(folder) == before


@pytest.mark.parametrize("url", URLS)
def test_the_traceback_shows_no_key(folder: Path, url: str) -> None:
    said = io.StringIO()
    words = ["velocity", "shards", "pull", url, "new", "--debug"]
    with redirect_stderr(said), patch.object(sys, "argv", words):
        assert run_main() == 1
    assert "Traceback" in said.getvalue()
    assert_clean(said.getvalue())


def list_paths() -> Iterator[Any]:
    """Each command and one of its parameters that is a local path."""
    for group in (cli.app, shards_app, tokenizer_app):
        for entry in group.registered_commands:
            assert entry.callback is not None
            hints = get_type_hints(entry.callback, include_extras=True)
            for name, label in label_paths(hints):
                yield pytest.param(
                    entry.callback, name, label, id=f"{entry.callback.__name__}-{name}"
                )


def test_paths_are_known_and_called_as_they_are_typed() -> None:
    labels = {tuple(parameter.values[1:]) for parameter in list_paths()}
    assert {("out", "--out"), ("ckpt", "--ckpt"), ("folder", "")} <= labels


@pytest.mark.parametrize(("command", "name", "label"), [*list_paths()])
def test_every_path_of_every_command_is_refused_as_a_url(
    command: Callable[..., None], name: str, label: str
) -> None:
    with pytest.raises(ValueError, match=r"is a URL, and|local disk") as caught:
        command(**{name: Path("s3://AKIA:SECR/ETKEY@bucket/set")})
    assert label in str(caught.value)
    assert_clean(str(caught.value))


@pytest.mark.parametrize(
    "key",
    [
        "data.shards",
        "infrastructure.output_dir",
        "infrastructure.logging_dir",
        "infrastructure.resume_from_checkpoint",
        "training.learning_rate",
        "nowhere.at_all",
    ],
)
def test_no_setting_shows_a_key(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    monkeypatch.chdir(folder)
    section, _, name = key.partition(".")
    for url in URLS[:4]:
        (folder / "run.yaml").write_text(f'{section}:\n  {name}: "{url}"\n')
        for words in ([f"{key}={url}"], ["--config", "run.yaml"]):
            monkeypatch.setattr(sys, "argv", ["train", *words])
            prepare_screen(sys.argv)
            with pytest.raises(SystemExit):
                read_and_tell(words)
            said = capsys.readouterr().err
            assert_clean(said)
            assert len(said.splitlines()) == 1


def test_a_settings_file_that_is_not_yaml_shows_no_key(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "run.yaml").write_text('data:\n  shards: "s3://AKIA:SECR ETKEY@bucket\n')
    prepare_screen([])
    with pytest.raises(SystemExit):
        read_and_tell(["--config", str(folder / "run.yaml")])
    said = capsys.readouterr().err
    assert "not valid YAML" in said
    assert_clean(said)


ORDERS = "\x1b]0;x\x07\x1b[31m\u202e"


def test_names_in_errors_and_tables_give_no_orders(folder: Path) -> None:
    hostile = folder / f"{ORDERS}\n.jsonl"
    hostile.write_text('{"content": "one"}\n{"\\u001b[2J": 1}\n')
    _, output, errors = velocity("prep", "--out", "o", "--input", hostile, cwd=folder)
    assert errors.replace("\n", "").isprintable()
    assert output == ""
    hostile.write_text('{"content": "one", "url": "\\u001b[2J"}\n')
    out = folder / f"o{ORDERS}"
    options = ["--workers", 1, "--validation-fraction", 0, "--input", hostile, folder / "a.jsonl"]
    options.insert(-1, "--input")
    code, _, errors = velocity("prep", "--out", out, *options, cwd=folder)
    assert code == 0, errors
    assert errors.replace("\n", "").isprintable()
    for words in (
        ["info", out],
        ["verify", out],
        ["stats", out],
        ["show", out, "--document", 0],
        ["show", out, "--url", ORDERS],
        ["trace", out, "--step", 1, "--config", "tiny", "data.max_seq_length=2"],
    ):
        _, output, errors = velocity("shards", *words, cwd=folder)
        assert (output + errors).replace("\n", "").isprintable(), words


@pytest.mark.parametrize(
    "words", [["--nosuch\x1b[2J"], ["prep", "--workers", "\x1b[2J", "--out", "o"]]
)
def test_what_was_typed_gives_no_orders(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, output, errors = velocity(*words)
    assert code == 2
    assert (output + errors).replace("\n", "").isprintable()
    with pytest.raises(SystemExit):
        read_and_tell(words)
    assert capsys.readouterr().err.replace("\n", "").isprintable()


def test_texts_of_a_set_are_escaped_on_a_terminal_alone(folder: Path) -> None:
    (folder / "esc.jsonl").write_text('{"content": "one\\u001b[2J two"}\n')
    options = ["--workers", 1, "--validation-fraction", 0, "--input", "esc.jsonl"]
    assert velocity("prep", "--out", "o", *options, cwd=folder)[0] == 0
    assert velocity("shards", "show", "o", "--document", 0, cwd=folder)[1] == "one\x1b[2J two\n"
    shown = io.StringIO()
    shown.isatty = lambda: True  # type: ignore[method-assign]
    words = ["velocity", "shards", "show", str(folder / "o"), "--document", "0"]
    with redirect_stdout(shown), patch.object(sys, "argv", words):
        assert run_main() == 0
    assert shown.getvalue() == "one\\x1b[2J two\n"


@pytest.mark.parametrize("name", ["no such;touch x", "$(id)", "`id`", "it's"])
def test_commands_to_paste_are_quoted(folder: Path, name: str) -> None:
    for words in (["shards", "info", name], ["shards", "info", f"s3://bucket/{name}"]):
        errors = velocity(*words, cwd=folder)[2]
        command = "velocity" + errors.rpartition(": velocity")[2].partition(" and name")[0]
        assert {name, f"{name}/"} & {*shlex.split(command)}, command


def test_the_next_command_of_prep_can_be_pasted(folder: Path) -> None:
    out = "my set;id"
    errors = velocity("prep", "--out", out, "--input", "a.jsonl", "--workers", 1, cwd=folder)[2]
    assert shlex.split(errors.splitlines()[-1])[-1] == f"data.shards={out}"


def test_a_bug_in_a_command_ends_in_one_line(folder: Path) -> None:
    with patch("shards.inspect.show.describe_set", side_effect=KeyError("totals")):
        code, output, errors = velocity("shards", "info", "SET", cwd=folder)
    assert (code, output) == (1, "")
    assert errors.startswith("velocity: unexpected KeyError: 'totals'; ")
    assert len(errors.splitlines()) == 1


def read_and_tell(words: list[str]) -> None:
    """Read a run's settings; what is wrong with them is told as a run does."""
    with Ending().telling_alike():
        read_settings(words)


@pytest.mark.parametrize("rank", ["0", "3"])
def test_a_bug_in_training_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], rank: str
) -> None:
    monkeypatch.setattr(sys, "stderr", sys.stderr)  # Restored afterwards: a run sets its own.
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setattr(sys, "argv", ["train", "--config", "tiny"])
    failing = patch("train.loop.train", side_effect=RecursionError("too\ndeep"))
    with failing, pytest.raises(SystemExit) as end:
        unwrap(train_main)()  # Without torchrun's fault handler, which wants a real stderr.
    assert end.value.code == 1
    name = "rank 3: " if rank == "3" else ""
    assert capfd.readouterr().err == (
        f"velocity: {name}unexpected RecursionError: too deep; --debug shows where; "
        "please report it\n"
    )


def test_a_broken_pipe_of_ours_is_told(folder: Path) -> None:
    """Typer would end without a word, as if the reader of the output had left."""
    broken = BrokenPipeError(32, "Broken pipe")
    with patch("shards.inspect.show.describe_set", side_effect=broken):
        code, _, errors = velocity("shards", "info", "SET", cwd=folder)
    assert (code, errors) == (1, "velocity: [Errno 32] Broken pipe\n")


# A pattern without quotes


def test_a_pattern_that_the_shell_expanded_is_told_as_one(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl", "my c.jsonl", "d.txt"):
        (tmp_path / name).write_text('{"content": "a"}\n')
    words = ("prep", "--out", "out", "--input", "a.jsonl", "b.jsonl")
    code, _, errors = velocity(*words, "--workers", 1, cwd=tmp_path)
    assert code == 1
    assert errors == (
        "velocity: --input takes one name, a.jsonl, and found 1 more behind it: b.jsonl; if the "
        "shell put them in the place of a pattern, quote it (--input '*.jsonl'), or name the "
        "folder; several names have --input before each\n"
    )
    code, _, errors = velocity(*words, "my c.jsonl", "d.txt", cwd=tmp_path)
    assert "3 more behind it: b.jsonl, my c.jsonl, d.txt; " in errors
    assert code == 1


def test_other_words_too_many_are_a_mistake_of_usage(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"content": "a"}\n')
    for words in (
        ("--input", "a.jsonl", "nothing"),
        ("a.jsonl", "--input", "a.jsonl"),
        ("--workers", "4", "a.jsonl"),
    ):
        code, _, errors = velocity("prep", "--out", "out", *words, cwd=tmp_path)
        assert code == 2
        assert "Got unexpected extra argument" in errors

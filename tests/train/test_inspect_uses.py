"""The commands that `velocity inspect` prints are run as they stand, after bash has read them."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from model.checkpoints.seal import seal
from model.decode.settings import Settings
from model.export.request import Request
from model.sample.options import Loading
from tests.commands import velocity
from tests.runs import read_metrics, run_small
from tests.texts import make_texts
from tests.tiny import TOKENIZER_JSON
from tests.tokenized import write_set
from train.loop import train
from train.settings import load_config
from train.start.arguments import parse_arguments

PROGRAMS = ("velocity", "torchrun", "python")
# What stands in place of a program: it tells its name and its words.
TELLER = '#!/bin/sh\nprintf \'%s\\n\' "${0##*/}" "$@"\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set and a run on it that was stopped half-way, under a name that a shell must not read."""
    folder = tmp_path_factory.mktemp("it's a run")
    write_set(folder / "shards", TOKENIZER_JSON, make_texts(60), "<|endoftext|>")
    run_small(folder / "shards", folder, training__save_steps=4, training__num_training_steps=4)
    (folder / "bin").mkdir()
    for name in PROGRAMS:
        (folder / "bin" / name).write_text(TELLER)
        (folder / "bin" / name).chmod(0o755)
    # As if it had been stopped: more steps were wanted.
    path = folder / "checkpoints" / "checkpoint-4" / "run_config.json"
    config = json.loads(path.read_text())
    config["training"]["num_training_steps"] = 6
    path.write_text(json.dumps(config))
    (path.parent / "checksums.json").unlink()
    seal(path.parent)
    return folder


def list_uses(folder: Path) -> list[str]:
    code, output, errors = velocity("inspect", folder, "--json")
    assert code == 0, errors
    uses: list[str] = json.loads(output)["use"]
    return uses


def read_words(line: str, folder: Path) -> list[str]:
    """The words of a printed line as bash gives them to the program."""
    given = subprocess.run(
        ["bash", "-c", line],
        env={"PATH": f"{folder / 'bin'}{os.pathsep}{os.defpath}", "HOME": "/nowhere"},
        capture_output=True,
        text=True,
        check=True,
    )
    return given.stdout.splitlines()


def run_line(line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a printed line does here; its output."""
    program, *words = read_words(line, folder)
    if program == "python":
        exec(words[1], {})
        return ""
    served, exported = list[Path](), list[Request]()

    def take(wish: Request, *_: object) -> list[list[str]]:
        exported.append(wish)
        return []

    # One would not end, and the other takes long; test_serve and test_export run them.
    monkeypatch.setattr("model.serve.server.serve", lambda ckpts, *_, **__: served.extend(ckpts))
    monkeypatch.setattr("model.export.run.export", take)
    code, output, errors = velocity(*words, cwd=folder)
    assert code == 0, errors
    for checkpoint in (*served, *(request.ckpt for request in exported)):
        assert Loading("cpu").make_load()(checkpoint).complete(["A"], Settings(max_new_tokens=1))
    assert (words[0] == "serve", words[0] == "export") == (bool(served), bool(exported))
    return output


def test_a_run_goes_on_with_its_own_settings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = folder / "checkpoints"
    uses = list_uses(run)
    [resume] = [line for line in uses if line.startswith("torchrun ")]
    kinds = [" ".join(line.split(" ")[:2]) for line in uses]
    for kind in ("sample", "serve", "export", "inspect"):
        assert f"velocity {kind}" in kinds
    outputs = {line: run_line(line, folder, monkeypatch) for line in uses if line != resume}
    assert outputs[f"{uses[0]} --all"].startswith("--- step 4: ")

    program, *words = read_words(resume, folder)
    assert [program, *words[:4]] == ["torchrun", "--nproc_per_node", "1", "-m", "train"]
    arguments = parse_arguments(words[4:])
    monkeypatch.chdir(folder)
    told = train(load_config(arguments.config, arguments.overrides))
    assert told.step == 6
    assert sorted(read_metrics(folder)) == [1, 2, 3, 4, 5, 6]
    assert not [line for line in list_uses(run) if line.startswith("torchrun ")]


def test_a_set_is_trained_on_and_verified(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_on, *others = list_uses(folder / "shards")
    program, *words = read_words(train_on, folder)
    assert [program, *words[:4]] == ["torchrun", "--nproc_per_node", "1", "-m", "train"]
    arguments = parse_arguments(words[4:])
    config = load_config(arguments.config, arguments.overrides)
    assert Path(config.data.shards) == folder / "shards"
    assert others[0].startswith("velocity shards verify ")
    for line in others:
        run_line(line, folder, monkeypatch)


def test_a_checkpoint_is_sampled_served_and_exported(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = sorted((folder / "checkpoints").glob("checkpoint-*"))[0]
    for line in list_uses(newest):
        run_line(line, folder, monkeypatch)

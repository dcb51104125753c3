"""`velocity publish`: the card says what the run was, and the Hub gets every file."""

import ast
import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner, Result

import cli
from model.checkpoints.folder import load_model, save_model
from model.checkpoints.seal import MODEL_FILES, WEIGHTS, CheckpointError
from tests.runs import run_small
from tests.servers.forked import run_forked
from tests.servers.hub_server import changed_environment
from tests.servers.hub_uploads import UploadHub
from tests.tiny import TOKENIZER_JSON, make_model
from train.page.log import read_log
from train.publish.card import make_card, show
from train.publish.facts import gather
from train.publish.publish import Publication

REPO = "someone/tiny-model"


@pytest.fixture(scope="module")
def run(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run's checkpoints."""
    folder = tmp_path_factory.mktemp("published")
    run_small(tiny_shards, folder, training__eval_steps=4)
    return folder / "checkpoints"


def publish(run: Path, *options: str) -> Result:
    words = ["publish", "--ckpt", str(run), "--license", "mit", *options]
    return CliRunner().invoke(cli.app, ["--debug", *words])


def read_card(text: str) -> tuple[dict[str, Any], str]:
    _, header, body = text.split("---\n", 2)
    return yaml.safe_load(header), body


def test_a_dry_run_writes_all_files_and_asks_nothing(
    run: Path, tiny_shards: Path, tmp_path: Path
) -> None:
    with UploadHub() as hub, changed_environment(hub.environment(tmp_path)):
        out = tmp_path / "out"
        result = publish(run, "--repo", REPO, "--space", "--dry-run", "--out", str(out))
        assert result.exit_code == 0, result.output
        assert hub.requests == []
    assert {path.name for path in (out / "model").iterdir()} == {
        *MODEL_FILES,
        "README.md",
        "loss.png",
    }
    [checkpoint] = run.glob("checkpoint-*")
    assert (out / "model" / WEIGHTS).read_bytes() == (checkpoint / WEIGHTS).read_bytes()
    header, body = read_card((out / "model" / "README.md").read_text())
    assert (header["license"], header["library_name"]) == ("mit", "transformers")
    state = json.loads((checkpoint / "training_state.json").read_text())
    assert state["dataset_id"] in body
    assert "| steps | 8 |" in body
    assert "| documents read | 60 |" in body
    assert "at step 8" in body
    for path in (tiny_shards, run):  # Of this machine, and nobody's business.
        assert str(path) not in body.replace("\\", "")
    app = ast.parse((out / "space" / "app.py").read_text())
    named = next(node.value for node in app.body if isinstance(node, ast.Assign))
    assert ast.literal_eval(named) == REPO
    space, _ = read_card((out / "space" / "README.md").read_text())
    assert (space["sdk"], space["models"]) == ("gradio", [REPO])
    again = publish(run, "--repo", REPO, "--dry-run", "--out", str(out))
    assert "is there already" in str(again.exception)


def test_a_dry_run_that_fails_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copyfile

    def copy_until_full(source: Path, target: Path) -> object:
        if target.name == WEIGHTS:
            raise OSError(errno.ENOSPC, "No space left on device")
        return copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", copy_until_full)
    result = publish(run, "--repo", REPO, "--dry-run", "--out", str(tmp_path / "out"))
    assert "No space left" in str(result.exception)
    assert [*tmp_path.iterdir()] == []


def test_the_card_knows_nothing_of_the_steps_after_its_checkpoint(
    run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run.parent, folder)
    metrics = folder / "logs" / "metrics.jsonl"
    later = {"step": 9, "loss": 77.5, "validation_loss": 77.5}
    metrics.write_text(f"{metrics.read_text()}{json.dumps(later)}\n")
    assert read_log(folder / "checkpoints").last_step == 9
    facts = gather(folder / "checkpoints")
    assert facts.log is not None
    assert facts.log.last_step == 8
    assert "77" not in make_card(facts, REPO, "mit", None, True).partition("## The data")[0]
    metrics.write_text(json.dumps(later) + "\n")
    assert gather(folder / "checkpoints").log is None


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A model from elsewhere, whose weights are in several files."""
    folder = tmp_path / "foreign"
    save_model(folder, make_model(), TOKENIZER_JSON, max_file_bytes=60_000)
    return folder


def write(folder: Path) -> tuple[dict[str, bytes], str]:
    """What would be published of a folder, and what was said; the first error otherwise."""
    out = folder.parent / "out"
    result = publish(folder, "--repo", REPO, "--dry-run", "--out", str(out))
    if result.exception is not None:
        assert not out.exists()
        raise result.exception
    return {path.name: path.read_bytes() for path in (out / "model").iterdir()}, result.output


def test_weights_in_several_files_are_published_whole(foreign: Path) -> None:
    index = json.loads((foreign / "model.safetensors.index.json").read_text())
    first, *others = sorted(set(index["weight_map"].values()))
    (foreign / first).rename(foreign / "own name.safetensors")
    index["weight_map"] = {
        weight: "own name.safetensors" if name == first else name
        for weight, name in index["weight_map"].items()
    }
    (foreign / "model.safetensors.index.json").write_text(json.dumps(index))
    (foreign / "model-00009-of-00009.safetensors").write_bytes(b"of an older save")
    (foreign / "optimizer.pt").write_bytes(b"mine")
    files, said = write(foreign)
    beside = {*MODEL_FILES} - {WEIGHTS}
    assert files.keys() == {
        "own name.safetensors", *others, "model.safetensors.index.json", "README.md", *beside
    }  # fmt: skip
    assert "left out, as no part of the model: model-00009-of-00009.safetensors" in said
    header, body = read_card(files["README.md"].decode())
    assert "pretrained with Velocity" not in body  # Nothing says so.
    assert "tags" not in header


def test_what_could_not_be_loaded_is_not_published(foreign: Path) -> None:
    part = sorted(foreign.glob("model-*"))[1]
    content = part.read_bytes()
    part.unlink()
    with pytest.raises(CheckpointError, match=f"1 are missing, such as {part.name}"):
        write(foreign)
    part.symlink_to(Path(__file__))
    with pytest.raises(CheckpointError, match=f"{part.name}: a link that leaves the folder"):
        write(foreign)
    part.unlink()
    part.write_bytes(content)
    tokenizer = (foreign / "tokenizer.json").rename(foreign.parent / "tokenizer.json")
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json, without which nobody can use"):
        write(foreign)
    tokenizer.rename(foreign / "tokenizer.json")
    config = json.loads((foreign / "config.json").read_text())
    (foreign / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    with pytest.raises(CheckpointError, match=r"config\.json: model_type is 'mamba'"):
        write(foreign)
    (foreign / "config.json").write_text(json.dumps(config))
    weights = load_model(foreign).state_dict()
    for path in foreign.glob("model*"):
        path.unlink()
    torch.save(weights, foreign / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is no safetensors file, which"):
        write(foreign)


def test_the_links_of_the_hubs_cache_are_files_of_the_model(foreign: Path) -> None:
    cache = foreign.parent / "models--a--b"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    for path in foreign.iterdir():
        path.rename(cache / "blobs" / path.name)
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    out = foreign.parent / "out"
    result = publish(snapshot, "--repo", REPO, "--dry-run", "--out", str(out))
    assert result.exit_code == 0, result.output
    assert not any(path.is_symlink() for path in (out / "model").iterdir())


def publish_in_a_process(run: Path, environment: dict[str, str], *options: str) -> list[Any]:
    """As a user does it: huggingface_hub reads its environment when it is loaded."""
    command = ["velocity", "publish", "--ckpt", run, "--repo", REPO, "--license", "mit", *options]
    process = run_forked(command, run, environment)
    return [process.returncode, process.stdout, process.stderr]


def test_the_hub_gets_the_files_and_the_user_no_token(run: Path, tmp_path: Path) -> None:
    with UploadHub() as hub:
        environment = hub.environment(tmp_path) | hub.environment_of_a_writer()
        code, out, err = publish_in_a_process(run, environment, "--space", "--private")
        assert code == 0, err
        assert {made["visibility"] for made in hub.made.values()} == {"private"}
        assert hub.made["space", REPO]["sdk"] == "gradio"
        model, space = hub.files["model", REPO], hub.files["space", REPO]
        assert f"{hub.url}/{REPO}" in out
        assert hub.token not in out + err
    [checkpoint] = run.glob("checkpoint-*")
    assert {name: model[name] for name in MODEL_FILES} == {
        name: (checkpoint / name).read_bytes() for name in MODEL_FILES
    }
    assert model.keys() == {*MODEL_FILES, "README.md", "loss.png"}
    assert space.keys() == {"app.py", "requirements.txt", "README.md"}


def test_what_the_hub_refuses_is_one_line(run: Path, tmp_path: Path) -> None:
    token = "hf_of_a_reader"
    with UploadHub() as hub:
        environment = hub.environment(tmp_path) | hub.environment_of_a_writer()
        code, _, err = publish_in_a_process(run, environment | {"HF_TOKEN": token})
    lines = [line for line in err.splitlines() if REPO in line]
    assert (code, len(lines)) == (1, 1), err
    assert "HTTP 401" in lines[0]
    assert "log in with `hf auth login`, or set HF_TOKEN" in lines[0]
    assert "Traceback" not in err
    assert token not in err


def test_a_private_model_never_goes_into_a_public_repository(run: Path, tmp_path: Path) -> None:
    with UploadHub() as hub:
        hub.made["model", REPO] = {}
        environment = hub.environment(tmp_path) | hub.environment_of_a_writer()
        code, _, err = publish_in_a_process(run, environment, "--private")
        assert (code, hub.files) == (1, {}), err
    assert "is public, and was so before" in err


def test_names_from_data_are_no_markup() -> None:
    assert show("<script>a|b\n[x](y)</script>") == (r"\<script\>a\|b\\n\[x\]\(y\)\</script\>")
    assert show("www.elsewhere.example") == r"www\.elsewhere\.example"  # Or GitHub makes a link.


@pytest.mark.parametrize(
    ("repo", "license", "expected"),
    [
        ("only-a-name", "mit", "expected USER/NAME"),
        ('a/b"\nimport os', "mit", "expected USER/NAME"),
        ("a/../b", "mit", "expected USER/NAME"),
        ("a/b", "my own: yes\n", "expected a name of the Hub's list"),
    ],
)
def test_names_that_the_hub_has_not_are_refused(repo: str, license: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Publication(Path("x"), repo, license)

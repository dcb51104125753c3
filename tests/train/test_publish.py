"""`velocity publish`: the card says what the run was, and the Hub gets every file."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

import cli
from model.checkpoints.seal import MODEL_FILES, WEIGHTS
from tests.runs import run_small
from tests.servers.forked import run_forked
from tests.servers.hub_server import changed_environment
from tests.servers.hub_uploads import UploadHub
from train.publish.card import show
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

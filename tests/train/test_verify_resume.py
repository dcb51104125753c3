"""`velocity verify-resume`: real runs, one killed; and what it says where they do not end alike."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoints.seal import seal
from tests.commands import velocity
from tests.runs import SMALL
from train.config import Config
from train.proof import two_runs
from train.proof.differences import compare_tensors
from train.proof.two_runs import Proof

# The kill must find the run at work.
SETTINGS = SMALL | {"model.hidden_size": 64, "training.gradient_accumulation_steps": 64}


def verify_resume(shards: Path, out: Path, *options: object) -> tuple[int, str, str]:
    words = [f"{key}={value}" for key, value in SETTINGS.items()]
    return velocity("verify-resume", "--out", out, *options, f"data.shards={shards}", *words)


def test_a_run_that_is_killed_ends_as_one_that_is_not(tiny_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "proof"
    code, said, errors = verify_resume(tiny_shards, out, "--ranks", 2, "--steps", 13)
    assert code == 0, errors
    assert "the same, bit for bit, after 13 steps" in said
    assert "resumed from step 7, ranks: 2)" in said
    assert not out.exists()


def test_moments_that_are_lost_are_found_out(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill = two_runs.kill_after

    def kill_and_forget(proof: Proof, config: Config, folder: Path) -> int:
        last = kill(proof, config, folder)
        checkpoint = folder / f"checkpoint-{proof.middle}"
        moments = load_file(checkpoint / "optimizer.safetensors")
        for name in [name for name in moments if name.endswith(".exp_avg")]:
            moments[name] = torch.zeros_like(moments[name])
        save_file(moments, checkpoint / "optimizer.safetensors")
        (checkpoint / "checksums.json").unlink()
        seal(checkpoint)
        return last

    monkeypatch.setattr(two_runs, "kill_after", kill_and_forget)
    out = tmp_path / "proof"
    code, _, errors = verify_resume(tiny_shards, out, "--steps", 12)
    assert code == 1
    assert "the two runs do not end alike: model.safetensors: 20 of 20 tensors" in errors
    assert "losses that differ: from step 8 on" in errors
    assert "they differ before the kill already (optimizer.safetensors: " in errors
    assert (out / "killed" / "checkpoint-12").is_dir()


def test_tensors_that_differ_are_named(tmp_path: Path) -> None:
    one, other = tmp_path / "one" / "w.safetensors", tmp_path / "other" / "w.safetensors"
    for path, shift in ((one, 0.0), (other, 0.25)):
        path.parent.mkdir()
        save_file({"a": torch.ones(3), "b": torch.zeros(2) + shift}, path)
    assert compare_tensors(one, one) is None
    found = compare_tensors(one, other)
    assert found == "w.safetensors: 1 of 2 tensors, most of all b, by up to 0.25"
    save_file({"a": torch.ones(3)}, other)
    assert compare_tensors(one, other) == "w.safetensors: the names of its tensors"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "3"], "--steps is 3; expected at least 4"),
        (["--ranks", "0"], "--ranks is 0; expected at least 1"),
        (["training.learning_rat=1"], "no key 'training.learning_rat'"),
        (["data.shards=nowhere"], "nowhere: no such folder"),
    ],
)
def test_wrong_wishes_are_one_line(tmp_path: Path, options: list[str], message: str) -> None:
    out = tmp_path / "proof"
    code, _, errors = velocity("verify-resume", "--out", out, "--config", "tiny", *options)
    assert code == 1
    assert message in errors.splitlines()[-1]
    assert not out.exists()


def test_a_run_that_fails_is_told_with_its_own_reason(tiny_shards: Path, tmp_path: Path) -> None:
    settings = "training.sample_steps=2", "training.sample_prompts=missing.txt"
    code, _, errors = verify_resume(tiny_shards, tmp_path / "proof", *settings)
    assert code == 1
    assert (
        "the run failed with exit code 78: training.sample_prompts is " in errors.splitlines()[-1]
    )


def test_a_folder_in_use_is_left_alone(tiny_shards: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    code, _, errors = verify_resume(tiny_shards, tmp_path)
    assert code == 1
    assert f"{tmp_path}: is not empty; choose another --out" in errors

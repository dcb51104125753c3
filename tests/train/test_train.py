"""A run: it learns, goes on exactly, and does not depend on how its samples are dealt."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.checkpoints.seal import CheckpointError, seal
from tests.runs import make_config, make_overrides, read_metrics, run_small
from tests.servers.forked import run_ranks
from train.checkpoints.position import OPTIMIZER
from train.checkpoints.resume import find_start

GOLDEN = Path(__file__).parents[1] / "golden" / "losses.json"


def checkpoint_tensors(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """Copies of a checkpoint's tensors; what load_file gives still lies in the file."""
    checkpoint = folder / "checkpoints" / f"checkpoint-{step}"
    tensors = load_file(checkpoint / "model.safetensors") | load_file(checkpoint / OPTIMIZER)
    return {name: tensor.clone() for name, tensor in tensors.items()}


def assert_equal_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def set_loss_scale(checkpoint: Path, scale: float) -> None:
    """Give a checkpoint another loss scale, sealed as if it had been saved so."""
    path = checkpoint / "training_state.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps(state | {"scaler": state["scaler"] | {"scale": scale}}))
    seal(checkpoint)


def test_twenty_steps_give_the_golden_losses(small_shards: Path, tmp_path: Path) -> None:
    """A change of the arithmetic shows here; docs/log.md says why where the file moves."""
    run_small(small_shards, tmp_path, training__num_training_steps=20)
    losses = read_metrics(tmp_path)
    golden = {int(step): loss for step, loss in json.loads(GOLDEN.read_text()).items()}
    assert losses == pytest.approx(golden, abs=1e-4)
    assert losses[20] < losses[1] - 1


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_going_on_equals_never_having_stopped(
    small_shards: Path, tmp_path: Path, precision: str
) -> None:
    settings = {"training__precision": precision, "training__save_steps": 5}
    run_small(small_shards, tmp_path / "straight", **settings)
    run_small(small_shards, tmp_path / "resumed", **settings)
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "checkpoint-8")
    outcome = run_small(small_shards, tmp_path / "resumed", **settings)
    assert outcome.step == 8
    straight, resumed = (checkpoint_tensors(tmp_path / n, 8) for n in ("straight", "resumed"))
    assert_equal_bits(straight, resumed)
    assert read_metrics(tmp_path / "straight") == read_metrics(tmp_path / "resumed")


def test_a_resumed_run_keeps_its_loss_scale(small_shards: Path, tmp_path: Path) -> None:
    settings = {"training__precision": "fp16", "training__num_training_steps": 4}
    run_small(small_shards, tmp_path, **settings)
    assert read_metrics(tmp_path, "loss_scale")[4] == 65536.0
    set_loss_scale(tmp_path / "checkpoints" / "checkpoint-4", 1024.0)
    run_small(small_shards, tmp_path, **settings | {"training__num_training_steps": 6})
    assert read_metrics(tmp_path, "loss_scale")[6] == 1024.0


def test_an_overflow_skips_the_step_and_lowers_the_scale(
    small_shards: Path, tmp_path: Path
) -> None:
    """A loss scale far too large makes fp16 gradients infinite until it has come down."""
    settings = {"training__precision": "fp16", "training__num_training_steps": 2}
    run_small(small_shards, tmp_path, **settings)
    set_loss_scale(tmp_path / "checkpoints" / "checkpoint-2", 2.0**40)
    before = checkpoint_tensors(tmp_path, 2)
    run_small(small_shards, tmp_path, **settings | {"training__num_training_steps": 3})
    after = checkpoint_tensors(tmp_path, 3)
    assert_equal_bits(before, after)
    assert read_metrics(tmp_path, "skipped_steps")[3] == 1
    assert read_metrics(tmp_path, "loss_scale")[3] == 2.0**39
    outcome = run_small(small_shards, tmp_path, **settings | {"training__num_training_steps": 40})
    assert outcome.step == 40
    assert all(torch.isfinite(tensor).all() for tensor in checkpoint_tensors(tmp_path, 40).values())
    assert 1 < read_metrics(tmp_path, "skipped_steps")[40] < 38


def test_many_skips_in_a_row_end_the_run_with_a_report(small_shards: Path, tmp_path: Path) -> None:
    settings = {"training__num_training_steps": 2, "training__precision": "fp16"}
    run_small(small_shards, tmp_path, **settings)
    set_loss_scale(tmp_path / "checkpoints" / "checkpoint-2", 2.0**60)
    settings |= {"training__num_training_steps": 30, "training__max_skipped_steps": 3}
    with pytest.raises(ValueError, match=r"step 5: the gradients were not finite in 3 steps in a"):
        run_small(small_shards, tmp_path, **settings)
    assert list_names(tmp_path) == ["checkpoint-2"]


def test_accumulation_and_batch_are_one(small_shards: Path, tmp_path: Path) -> None:
    run_small(small_shards, tmp_path / "a")
    settings = {"training__batch_size_per_device": 4, "training__gradient_accumulation_steps": 1}
    run_small(small_shards, tmp_path / "b", **settings)
    assert read_metrics(tmp_path / "a") == pytest.approx(read_metrics(tmp_path / "b"), abs=1e-5)


def test_activation_checkpointing_changes_nothing(small_shards: Path, tmp_path: Path) -> None:
    losses = []
    for word in ("none", "selective", "full"):
        run_small(small_shards, tmp_path / word, training__activation_checkpointing=word)
        losses.append(read_metrics(tmp_path / word))
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_two_ranks_give_the_losses_of_one(
    small_shards: Path, tmp_path: Path, precision: str
) -> None:
    """Half the accumulation on each; then a third rank count goes on with the same samples."""
    alone = {"training__gradient_accumulation_steps": 4, "training__precision": precision}
    run_small(small_shards, tmp_path / "one", **alone)
    two = make_overrides(small_shards, tmp_path / "two", training__precision=precision)
    run_ranks(2, two)
    tolerance = 1e-5 if precision == "fp32" else 1e-3
    for metric in ("loss", "grad_norm"):
        first, second = (read_metrics(tmp_path / n, metric) for n in ("one", "two"))
        assert first == pytest.approx(second, abs=tolerance)
    samples = read_metrics(tmp_path / "one", "samples")
    assert samples == read_metrics(tmp_path / "two", "samples")
    validation = [read_metrics(tmp_path / n, "validation_loss")[8] for n in ("one", "two")]
    assert validation[0] == pytest.approx(validation[1], abs=tolerance)

    # The run of two ranks goes on with one: the same samples a step.
    for folder in ("two", "one"):
        run_small(small_shards, tmp_path / folder, **alone, training__num_training_steps=12)
    assert read_metrics(tmp_path / "one", "samples") == read_metrics(tmp_path / "two", "samples")
    assert read_metrics(tmp_path / "one") == pytest.approx(
        read_metrics(tmp_path / "two"), abs=tolerance
    )


def test_only_the_newest_checkpoints_stay(small_shards: Path, tmp_path: Path) -> None:
    run_small(small_shards, tmp_path, training__save_steps=1, training__save_total_limit=2)
    assert list_names(tmp_path) == ["checkpoint-7", "checkpoint-8"]
    modes = {path.stat().st_mode for path in (tmp_path / "checkpoints/checkpoint-8").iterdir()}
    assert len(modes) == 1  # Whoever may read config.json may read the weights.


def test_a_run_that_left_a_damaged_checkpoint_behind_keeps_its_own(
    small_shards: Path, tmp_path: Path
) -> None:
    """Damaged ones of later steps are not among the newest that are kept."""
    run_small(small_shards, tmp_path, training__save_steps=4)
    flip_byte(tmp_path / "checkpoints" / "checkpoint-8" / "model.safetensors")
    settings = {"training__num_training_steps": 6, "training__save_total_limit": 1}
    outcome = run_small(small_shards, tmp_path, **settings)
    assert list_names(tmp_path) == ["checkpoint-6"]
    assert outcome.checkpoint == tmp_path / "checkpoints" / "checkpoint-6"


def list_names(folder: Path) -> list[str]:
    """What is in a run's folder of checkpoints, but for its lock."""
    names = (path.name for path in (folder / "checkpoints").iterdir())
    return sorted(name for name in names if not name.startswith(".lock"))


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "config.json"])
def test_a_flipped_byte_is_named_and_the_checkpoint_before_is_used(
    small_shards: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_small(small_shards, tmp_path, training__save_steps=4)
    damaged = tmp_path / "checkpoints" / "checkpoint-8" / name
    before = checkpoint_tensors(tmp_path, 8)
    flip_byte(damaged)
    outcome = run_small(small_shards, tmp_path, training__save_steps=4)
    errors = capsys.readouterr().err
    assert str(damaged) in errors
    assert "resuming from" in errors
    assert "checkpoint-4: step 4" in errors
    assert outcome.step == 8
    assert_equal_bits(checkpoint_tensors(tmp_path, 8), before)


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over(
    small_shards: Path, tmp_path: Path
) -> None:
    run_small(small_shards, tmp_path)
    flip_byte(tmp_path / "checkpoints" / "checkpoint-8" / "model.safetensors")
    with pytest.raises(ValueError, match="every checkpoint in it is damaged"):
        run_small(small_shards, tmp_path)


def test_a_start_from_scratch_does_not_write_over_a_run(small_shards: Path, tmp_path: Path) -> None:
    run_small(small_shards, tmp_path)
    with pytest.raises(ValueError, match="holds checkpoint-8, but infra"):
        run_small(small_shards, tmp_path, infrastructure__resume_from_checkpoint="null")


def test_a_named_checkpoint_starts_another_run(small_shards: Path, tmp_path: Path) -> None:
    run_small(small_shards, tmp_path / "first", training__num_training_steps=4)
    checkpoint = tmp_path / "first" / "checkpoints" / "checkpoint-4"
    settings = {"infrastructure__resume_from_checkpoint": checkpoint}
    outcome = run_small(small_shards, tmp_path / "second", **settings)
    assert outcome.step == 8
    assert min(read_metrics(tmp_path / "second")) == 5
    config = make_config(small_shards, tmp_path / "third").infrastructure
    config = replace(config, resume_from_checkpoint=str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match="nowhere: no such checkpoint"):
        find_start(config, lambda text: None, set())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model__hidden_size": 32}, "was trained with model.hidden_size=16, now it is 32"),
        ({"infrastructure__seed": 1}, "was trained with infrastructure.seed=42, now it is 1"),
        ({"data__max_seq_length": 8}, "was trained with data.max_seq_length=16, now it is 8"),
        ({"model__vocab_size": 300}, "its tokenizer has 50257 ids, model.vocab_size is 300; set"),
    ],
)
def test_a_run_does_not_go_on_as_another(
    small_shards: Path, tmp_path: Path, change: dict[str, int], message: str
) -> None:
    run_small(small_shards, tmp_path, training__num_training_steps=2)
    with pytest.raises(ValueError, match=message):
        run_small(small_shards, tmp_path, **change)


def test_the_log_drops_what_lies_behind_the_step_it_goes_on_from(
    small_shards: Path, tmp_path: Path
) -> None:
    run_small(small_shards, tmp_path, training__save_steps=5)
    shutil.rmtree(tmp_path / "checkpoints" / "checkpoint-8")
    log = tmp_path / "logs" / "metrics.jsonl"
    log.write_text(log.read_text() + '{"step": 9, "half a li')
    run_small(small_shards, tmp_path, training__save_steps=5)
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8, 8]  # The last one is the validation loss.


def test_another_run_does_not_write_over_a_log(small_shards: Path, tmp_path: Path) -> None:
    run_small(small_shards, tmp_path)
    log = (tmp_path / "logs" / "metrics.jsonl").read_text()
    settings = {"infrastructure__output_dir": tmp_path / "other", "infrastructure__seed": 1}
    run_small(small_shards, tmp_path, **settings)
    assert (tmp_path / "logs" / "earlier-1" / "metrics.jsonl").read_text() == log
    assert read_metrics(tmp_path).keys() == set(range(1, 9))


def test_tensorboard_shows_the_curves(small_shards: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_small(small_shards, tmp_path, training__precision="fp16")
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    expected = {
        "loss/train",
        "optimizer/learning_rate",
        "optimizer/grad_norm",
        "optimizer/loss_scale",
    }
    assert expected | {"loss/validation", "speed/tokens_per_second"} <= set(
        events.Tags()["scalars"]
    )
    losses = {event.step: event.value for event in events.Scalars("loss/train")}
    assert losses == pytest.approx(read_metrics(tmp_path), rel=1e-6)


def test_a_full_disk_leaves_the_checkpoints_before_it(small_shards: Path, tmp_path: Path) -> None:
    run_small(small_shards, tmp_path, training__num_training_steps=2)
    import resource
    import signal

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"checkpoint-4 could not be written .* are intact"):
            run_small(small_shards, tmp_path, training__num_training_steps=4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert list_names(tmp_path) == ["checkpoint-2"]
    assert run_small(small_shards, tmp_path, training__num_training_steps=4).step == 4

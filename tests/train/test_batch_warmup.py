"""The batch warmup: a step's samples double, and which they are stays arithmetic."""

import math
from itertools import accumulate, pairwise
from pathlib import Path

import pytest

from shards.reader import open_shards
from tests.runs import make_config, make_overrides, read_metrics, run_small
from tests.servers.forked import run_ranks
from tests.train.test_bad_steps import bent
from tests.train.test_rollback import SETTINGS, read_history, spoil
from tests.train.test_train import assert_equal_bits, checkpoint_tensors
from train.config import Config
from train.settings import load_config
from train.start.batch import settle_batch
from train.start.fit import deals_evenly
from train.start.length import describe_step
from train.tracing.runs import trace_run, trace_settings

# Of 7 samples of 16 tokens: 1, 1, 3, 3, then 7; on two ranks, one has none in the first steps.
WARMUP: dict[str, object] = {
    "training__global_batch_tokens": 7 * 16,
    "training__gradient_accumulation_steps": "auto",
    "training__batch_warmup_steps": 4,
    "training__batch_warmup_doublings": 2,
}
SAMPLES = [1, 1, 3, 3, 7, 7, 7, 7]


def configure(*words: str) -> Config:
    return load_config(None, ["data.max_seq_length=16", *words])


@pytest.mark.parametrize("doublings", [1, 3, 10])
@pytest.mark.parametrize("steps", [0, 1, 2, 7, 100])
def test_a_steps_samples_double_in_stages_of_equal_length(steps: int, doublings: int) -> None:
    config = configure(
        "training.global_batch_tokens=1600",
        f"training.batch_warmup_steps={steps}",
        f"training.batch_warmup_doublings={doublings}",
        "training.num_training_steps=120",
    )
    found = [config.samples_of_step(step, 3) for step in range(120)]
    expected = [
        100 // 2 ** (doublings - step * doublings // max(steps, 1)) for step in range(steps)
    ]
    assert found == [max(samples, 1) for samples in expected] + (120 - steps) * [100]
    assert config.count_tokens(3) == 16 * sum(found)


def test_stages_are_told_and_compiled_for_where_their_shapes_differ() -> None:
    words = ["training.global_batch_tokens=2048", "training.batch_warmup_steps=10"]
    for batch, is_even in ((16, True), (32, False)):
        config = settle_batch(configure(*words, f"training.batch_size_per_device={batch}"), 1)
        assert deals_evenly(config, 1) == is_even  # 128, and before that 16, 32 and 64.
    assert describe_step(config, 1) == (
        "2,048 tokens (32 samples of 16 x 4 micro-steps) from step 11 on; they double up to there "
        "from 256"
    )


def test_a_run_reads_what_was_planned_and_goes_on_within_the_warmup(
    tiny_shards: Path, tmp_path: Path
) -> None:
    """On one rank and on two; going on after steps 2 and 3, at the end of a stage and within it."""
    constant = WARMUP | {"training__schedule": "constant"}
    run_small(tiny_shards, tmp_path / "one", **constant)
    run_ranks(2, make_overrides(tiny_shards, tmp_path / "two", **constant))
    for steps in (2, 3, 8):
        changes = constant | {"training__num_training_steps": steps}
        run_small(tiny_shards, tmp_path / "resumed", **changes)
    assert_equal_bits(*(checkpoint_tensors(tmp_path / n, 8) for n in ("one", "resumed")))
    for name in ("one", "two", "resumed"):
        consumed = [*read_metrics(tmp_path / name, "samples").values()]
        assert consumed == list(accumulate(SAMPLES))
        assert read_history(tmp_path / name, 8) == [(0, 0, 1), (2, 2, 3), (4, 8, 7)]
    for metric in ("loss", "grad_norm"):
        one, two = (read_metrics(tmp_path / name, metric) for name in ("one", "two"))
        assert one == pytest.approx(two, abs=1e-5)

    shards = open_shards(tiny_shards)
    taken = trace_run(shards, tmp_path / "resumed" / "checkpoints")
    planned = trace_settings(shards, make_config(tiny_shards, tmp_path, **constant), 2)
    for step, (first, stop) in enumerate(pairwise([0, *accumulate(SAMPLES)]), start=1):
        for tracer in (taken, planned):
            found = [sample for sample, _, _ in tracer.documents_of_step(step)]
            assert found == list(range(first, stop))
        for _, _, documents in taken.documents_of_step(step):
            assert all(step in taken.steps_of_document(document) for document in documents)


def test_a_run_that_goes_back_into_an_earlier_stage_has_its_batches(
    tiny_shards: Path, tmp_path: Path
) -> None:
    """Steps of 1, 1, 1, 2, 2, 2, then 4 samples; step 7 is bad, and the run goes back to step 4."""
    warmup = {"training__batch_warmup_steps": 6, "training__batch_warmup_doublings": 2}
    # The losses of single samples differ too much to be compared.
    settings = SETTINGS | warmup | {"training__spike_threshold": "null"}
    with bent(lambda run, total: spoil((13,), run, total, math.nan)):
        run_small(tiny_shards, tmp_path, **settings)
    assert read_history(tmp_path, 10) == [(0, 0, 1), (3, 3, 2), (4, 13, 2), (6, 17, 4)]
    samples = read_metrics(tmp_path, "samples")
    assert [samples[step] for step in range(1, 11)] == [1, 2, 3, 5, 15, 17, 21, 25, 29, 33]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("training.batch_warmup_steps=-1", "batch_warmup_steps is -1; expected at least 0"),
        ("training.batch_warmup_doublings=0", "batch_warmup_doublings is 0; expected at least 1"),
        ("training.batch_warmup_doublings=31", "_doublings is 31; expected at most 30"),
    ],
)
def test_a_warmup_that_cannot_be_is_refused(words: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        configure(words)

"""`velocity tune-lr`: real short runs, those that are done kept, and what is said of them."""

import json
import math
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.commands import velocity
from tests.runs import SMALL
from train.config import Config
from train.settings import load_config
from train.training_config import TrainingConfig
from train.tuning import sweep
from train.tuning.grid import MAX_RATES, widen
from train.tuning.picture import draw
from train.tuning.trials import Trial, read_end, set_rate, shorten

WORDS = [f"{key}={value}" for key, value in SMALL.items()]


def tune(shards: Path, out: Path, *options: object) -> tuple[int, str, str]:
    return velocity("tune-lr", "--out", out, f"data.shards={shards}", *WORDS, *options)


def read_record(out: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((out / "tuning.json").read_text())
    return record


def test_the_grid_widens_until_the_best_is_inside_it() -> None:
    assert widen((1.0, 2.0, 4.0), {2.0}) == (1.0, 2.0, 4.0)
    assert widen((1.0, 2.0, 4.0), {4.0}) == (1.0, 2.0, 4.0, 8.0)
    assert widen((1.0, 2.0, 4.0), {1.0}) == (0.5, 1.0, 2.0, 4.0)
    assert widen((1.0,), {1.0}) == (0.5, 1.0, 2.0)
    full = tuple(float(2**n) for n in range(MAX_RATES))
    assert widen(full, {full[-1]}) == full


def test_a_trial_is_the_whole_schedule_made_shorter() -> None:
    config = load_config(None, ["training.cycle_steps=30000", "training.batch_warmup_steps=100"])
    own = shorten(config, 1000)
    assert own["training.num_training_steps"] == own["training.eval_steps"] == 1000
    assert own["training.warmup_steps"] == 20
    assert own["training.cycle_steps"] == 300
    assert own["training.batch_warmup_steps"] == 1
    # As settings they can be read, and nothing that has no length gets one.
    short = load_config(None, [f"{key}={value}" for key, value in own.items()])
    assert (short.training.cycle_steps, short.training.keep_every_steps) == (300, None)
    plain = Config(training=TrainingConfig(warmup_steps=0))
    assert not {"training.warmup_steps", "training.cycle_steps"} & shorten(plain, 10).keys()


def test_the_lowest_rate_of_a_cycle_keeps_its_share() -> None:
    own = set_rate(Config(), "learning_rate", 3e-5)
    assert own == pytest.approx(
        {"training.learning_rate": 3e-5, "training.min_learning_rate": 3e-6}
    )
    assert set_rate(Config(), "muon_learning_rate", 0.01) == {"training.muon_learning_rate": 0.01}


@pytest.fixture(scope="module")
def tuned(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Real runs: one rate that cannot learn, a good one, and one with which weights overflow."""
    out = tmp_path_factory.mktemp("tuned") / "tuning"
    code, said, errors = tune(tiny_shards, out, "--rates", "1e-6,1e-2,1e15", "--steps", 4)
    assert code == 0, errors
    return out, said


def test_the_best_rate_is_found_and_a_diverged_run_is_a_result(tuned: tuple[Path, str]) -> None:
    out, said = tuned
    record = read_record(out)
    assert [trial["rate"] for trial in record["trials"]] == [1e-6, 1e-2, 1e15]
    low, best, lost = (trial["loss"] for trial in record["trials"])
    assert best < low - 0.01
    assert lost is None
    lines = said.splitlines()
    assert [line.split()[:2] for line in lines[1:4]] == [
        ["1e-06", f"{low:.4f}"],
        ["0.01", f"{best:.4f}"],
        ["1e+15", "diverged"],
    ]
    assert "  training.learning_rate=0.01 training.min_learning_rate=0.001" in lines
    assert any("the best of 4 steps is seldom too low for 8" in line for line in lines)


def test_trials_are_runs_of_their_own_and_leave_logs_alone(tuned: tuple[Path, str]) -> None:
    out, _ = tuned
    folder = out / "learning_rate-0.01"
    assert read_end(folder / "logs", 4)[0] == read_record(out)["trials"][1]["loss"]
    assert not list(out.rglob("*.safetensors"))
    metrics = [
        json.loads(line) for line in (folder / "logs/metrics.jsonl").read_text().splitlines()
    ]
    rates = [record["learning_rate"] for record in metrics if "learning_rate" in record]
    # Warmup of 2 of 8 steps is 1 of 4, and the last step is near the lowest rate.
    assert rates[0] == 0.01
    assert len(rates) == 4


def test_the_picture_shows_every_trial(tuned: tuple[Path, str]) -> None:
    out, _ = tuned
    picture = (out / "tuning.svg").read_text()
    assert picture.count("<circle") == 2
    assert picture.count('class="lost"') == 1
    assert "1e+15: diverged" in picture
    lower, higher = (float(y) for y in re.findall(r'cy="([\d.]+)"', picture))
    assert lower < higher, "a lower loss is further down"


def test_what_is_done_is_not_done_again(
    tuned: tuple[Path, str], tiny_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, said = tuned
    monkeypatch.setattr(sweep, "run_trial", lambda *_: pytest.fail("a trial was run again"))
    code, again, errors = tune(tiny_shards, out, "--rates", "1e-6,1e-2,1e15", "--steps", 4)
    assert (code, again) == (0, said), errors
    code, _, errors = tune(tiny_shards, out, "training.weight_decay=0.5", "--steps", 3)
    assert code == 1
    assert (
        f"{out}/tuning.json: its trials were made with another training.weight_decay, steps; "
        "choose another --out, or ask as before"
    ) in errors


def test_a_kill_costs_no_finished_trial(tiny_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuning"
    words = ["tune-lr", "--out", str(out), f"data.shards={tiny_shards}", *WORDS]
    words += ["--rates", "1e-3,1e-2,1e15", "--steps", "4"]
    process = subprocess.Popen([sys.executable, "-m", "cli", *words], start_new_session=True)
    try:
        while not (out / "tuning.json").exists():
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = read_record(out)["trials"]
    assert 1 <= len(done) < 3
    deadline = time.monotonic() + 300
    while True:  # What the kill left may be at work for a while.
        code, _, errors = velocity(*words)
        if "wait for it, or stop it" not in errors:  # Found before a trial begins, or by its run.
            break
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert code == 0, errors
    assert read_record(out)["trials"][: len(done)] == done
    assert "a run of 4 steps" in errors
    assert f"learning_rate {done[0]['rate']:g}: a run" not in errors


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """No runs: a rate's loss is its distance from 0.02, in doublings. The rates asked for."""
    asked: list[float] = []

    def run_trial(tuning: sweep.Tuning, config: Config, rate: float, steps: int) -> Trial:
        asked.append(rate)
        doublings = abs(math.log2(rate / 0.02))
        return Trial(rate, 3 + doublings, 0, 1.0)

    monkeypatch.setattr(sweep, "run_trial", run_trial)
    return asked


def test_it_begins_at_the_settings_own_rate_and_goes_on_from_there(
    tiny_shards: Path, tmp_path: Path, quick: list[float]
) -> None:
    code, said, _ = tune(tiny_shards, tmp_path / "one", "training.schedule=cosine")
    assert code == 0
    assert quick == [0.005, 0.01, 0.02, 0.04]
    assert "  training.learning_rate=0.02" in said.splitlines()
    quick.clear()
    muon = ("training.optimizer=muon", "training.muon_learning_rate=0.03")
    code, said, _ = tune(tiny_shards, tmp_path / "two", *muon, "--parameter", "muon_learning_rate")
    assert code == 0
    assert quick == [0.015, 0.03, 0.06, 0.0075]
    assert "  training.muon_learning_rate=0.015" in said.splitlines()
    # With the other rate it keeps its share.
    code, said, _ = tune(tiny_shards, tmp_path / "three", "training.schedule=cosine", *muon)
    assert "  training.learning_rate=0.02 training.muon_learning_rate=0.06" in said.splitlines()


def test_where_all_diverge_it_says_so(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sweep, "run_trial", lambda tuning, config, rate, steps: Trial(rate, None, steps, 1.0)
    )
    code, _, errors = tune(tiny_shards, tmp_path / "tuning")
    assert code == 1
    assert "every run diverged, so no rate can be named" in errors.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rates", "1e-3,fast"], "--rates is '1e-3,fast'; expected numbers above 0: 1e-3,2e-3"),
        (["--rates", "0,1"], "--rates is '0,1'; expected numbers above 0"),
        (["--rates", "nan"], "--rates is 'nan'; expected numbers above 0"),
        (["--rates", "1e-3,1e18"], "--rates is '1e-3,1e18'; expected numbers above 0"),
        (["--steps", "0"], "--steps is 0; expected at least 1"),
        (["--steps", "9"], "--steps is 9; expected at most training.num_training_steps=8"),
        (["--ranks", "0"], "--ranks is 0; expected at least 1"),
        (["--parameter", "muon_learning_rate"], "training.optimizer is adamw; add training.opt"),
        (["training.eval_windows=0"], "rates are judged by the validation loss, which needs"),
        (["training.learning_rate=0", "training.min_learning_rate=0"], "no rate to begin at"),
        (["training.learning_rat=1"], "no key 'training.learning_rat'"),
        (["data.shards=nowhere"], "nowhere: no such folder"),
    ],
)
def test_wrong_wishes_are_one_line(
    tiny_shards: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    out = tmp_path / "tuning"
    code, _, errors = tune(tiny_shards, out, *options)
    assert code == 1
    assert message in errors.splitlines()[-1]
    assert not out.exists()


def test_a_run_that_fails_is_told_with_its_own_reason(tiny_shards: Path, tmp_path: Path) -> None:
    settings = "infrastructure.resume_from_checkpoint=missing"
    code, _, errors = tune(tiny_shards, tmp_path / "tuning", settings)
    assert code == 1
    assert "the run failed with exit code 78: " in errors.splitlines()[-1]
    assert not (tmp_path / "tuning/tuning.json").exists()


def test_a_record_that_is_damaged_is_named(tiny_shards: Path, tmp_path: Path) -> None:
    (tmp_path / "tuning.json").write_text('{"asked": {}, "trials": []}')
    code, _, errors = tune(tiny_shards, tmp_path)
    assert code == 1
    assert f"{tmp_path}/tuning.json: asked.parameter is missing; remove it" in errors


def test_a_drawing_of_one_rate_or_of_none_that_lived_is_whole() -> None:
    assert draw("learning_rate", [Trial(1e-3, 5.0, 0, 1.0)]).count("<circle") == 1
    assert "diverged" in draw("learning_rate", [Trial(1e-3, None, 0, 1.0)])

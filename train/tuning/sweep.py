"""`velocity tune-lr`: a short run at each learning rate of a grid, and what they came to.

Each is a real run in a process of its own, with the run's own settings, and its whole schedule in
so many steps. The same command again does what is missing.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.checkpoints.seal import list_checkpoints
from model.config import MAX_NUMBER
from shards.disk.folders import make_folder, remove
from shards.disk.lock import hold, is_held
from shards.disk.space import check_space
from shards.mixture.sets import Sets, open_sets
from shards.screen.lines import Say
from train.begin.shape import begin_shape
from train.checkpoints.claim import LOCK
from train.config import Config
from train.evaluate import count_windows
from train.proof.processes import run_to_end, train_command
from train.settings import load_config
from train.start.ids import find_length, fit_sets
from train.tuning.grid import widen
from train.tuning.picture import write_picture
from train.tuning.record import Record, describe_asked, open_record
from train.tuning.show import describe_trial, describe_tuning
from train.tuning.trials import Parameter, Trial, read_end, set_rate, shorten

# Without --steps: this share of the run, but at least so many.
SHARE, LEAST_STEPS = 0.1, 100


@dataclass(frozen=True)
class Tuning:
    """What is tuned, and where."""

    name: str | None
    overrides: Sequence[str]
    # Empty = half of the settings' own, that, and twice that.
    rates: tuple[float, ...]
    # None = a tenth of the run.
    steps: int | None
    parameter: Parameter
    ranks: int
    folder: Path

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"--steps is {self.steps}; expected at least 1")
        if self.ranks < 1:
            raise ValueError(f"--ranks is {self.ranks}; expected at least 1")


def read_rates(text: str) -> tuple[float, ...]:
    """--rates: numbers above 0, ascending however they are written; ValueError for others.

    >>> read_rates("2e-3,1e-3")
    (0.001, 0.002)
    """
    try:
        rates = sorted({float(word) for word in text.split(",")})
    except ValueError:
        rates = [0.0]
    if not 0 < rates[0] <= rates[-1] < MAX_NUMBER:
        raise ValueError(f"--rates is {text!r:.60}; expected numbers above 0: 1e-3,2e-3,4e-3")
    return tuple(rates)


def tune(tuning: Tuning, say: Say) -> Iterator[str]:
    """Run all trials that are not there yet; what was found, line by line."""
    config = load_config(tuning.name, tuning.overrides)
    # Before anything is written.
    sets = open_sets(config.data.entries, find_length(config), config.infrastructure.seed)
    config = begin_shape(config, sets.first)
    config = fit_sets(config, sets, tuning.ranks)
    steps = choose_steps(tuning, config)
    check_tuning(tuning, config, sets)
    rates = tuning.rates or start_grid(config, tuning.parameter)
    dataset_id = " ".join(sets.dataset_ids)
    asked = describe_asked(config, tuning.parameter, steps, tuning.ranks, dataset_id)
    make_folder(tuning.folder)
    with hold(tuning.folder, tuning.folder / LOCK, f"{tuning.folder}: is being tuned in "):
        record = open_record(tuning.folder, asked)
        say(check_space(tuning.folder, config.checkpoint_bytes, "choose another --out"))
        while True:
            for rate in rates:
                if rate not in record.trials:
                    say(f"{tuning.parameter} {rate:g}: a run of {steps:,} steps")
                    record.add(run_trial(tuning, config, rate, steps))
                    say(describe_trial(record.trials[rate]))
            best = find_best(record, rates)
            wider = widen(rates, {best})
            if wider == rates:
                break
            rates = wider
        picture = write_picture(tuning.folder, tuning.parameter, [*record.trials.values()])
        yield from describe_tuning(record, config, best, is_inside=rates[0] < best < rates[-1])
        yield f"drawn in {picture}, all numbers in {record.path}"


def choose_steps(tuning: Tuning, config: Config) -> int:
    """The steps of each trial; ValueError if the run itself has fewer."""
    whole = config.training.num_training_steps
    steps = tuning.steps or min(max(round(SHARE * whole), LEAST_STEPS), whole)
    if steps > whole:
        raise ValueError(
            f"--steps is {steps:,}; expected at most training.num_training_steps={whole:,}, as a "
            "trial is the run made shorter"
        )
    return steps


def check_tuning(tuning: Tuning, config: Config, sets: Sets) -> None:
    """ValueError if there is nothing that a trial could be judged by, or no such rate."""
    training = config.training
    if tuning.parameter == "muon_learning_rate" and training.optimizer != "muon":
        raise ValueError(
            f"--parameter muon_learning_rate: training.optimizer is {training.optimizer}; add "
            "training.optimizer=muon"
        )
    streams = [source.stream("validation") for source in sets.sources]
    length = config.data.max_seq_length
    if not any(count_windows(stream, length, training.eval_windows) for stream in streams):
        longest = max(stream.num_tokens for stream in streams)
        raise ValueError(
            f"{sets.first.folder}: rates are judged by the validation loss, which needs a "
            f"validation split of more than data.max_seq_length={length} tokens and "
            f"training.eval_windows above 0; they are {longest:,} and {training.eval_windows}"
        )


def start_grid(config: Config, parameter: Parameter) -> tuple[float, ...]:
    """Half of the settings' own rate, that rate, and twice that."""
    own = getattr(config.training, parameter)
    middle = config.training.learning_rate if own is None else own
    if not middle:
        raise ValueError(
            f"training.{parameter} is 0, so there is no rate to begin at; give --rates"
        )
    return middle / 2, middle, 2 * middle


def run_trial(tuning: Tuning, config: Config, rate: float, steps: int) -> Trial:
    """One short run from its beginning to its end; of what it wrote, its log stays."""
    folder = tuning.folder / f"{tuning.parameter}-{rate:g}"
    if folder.exists():
        # What a kill of this command left may still be at work.
        if is_held(folder / LOCK):
            raise ValueError(f"{folder}: a run is still at work there; wait for it, or stop it")
        remove(folder)
    own = shorten(config, steps) | set_rate(config, tuning.parameter, rate)
    own |= {"infrastructure.output_dir": folder, "infrastructure.logging_dir": "null"}
    started = time.monotonic()
    run_to_end(train_command(tuning.name, tuning.overrides, own), folder, tuning.ranks)
    seconds = round(time.monotonic() - started, 1)
    loss, skipped = read_end(folder / "logs", steps)
    for checkpoint in list_checkpoints(folder):
        remove(checkpoint)
    return Trial(rate, loss, skipped, seconds)


def find_best(record: Record, rates: Sequence[float]) -> float:
    """The rate with the lowest loss, of equal ones the smallest; one that diverged loses to all."""

    def judge(rate: float) -> tuple[float, float]:
        loss = record.trials[rate].loss
        return math.inf if loss is None else loss, rate

    return min(rates, key=judge)

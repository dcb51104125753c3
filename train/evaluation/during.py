"""Evaluation during a run: sets and tasks, as `velocity eval` does with its checkpoints.

All is opened, read and checked before the first step. Names of metrics are `sets/NAME/loss`,
`tasks/NAME/acc` and the like, with the numbers that `velocity eval --json` has.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

from model.checkpoints.hugging_face import Boundaries
from model.checkpoints.kept_tokenizer import KeptTokenizer
from model.documents import Marks
from model.transformer import Transformer
from shards.disk.layout import TOKENIZER
from shards.order import check_row_tokens, find_padding
from shards.reader import Shards, TokenStream, open_shards
from shards.screen.lines import Say, format_plural
from shards.screen.url import refuse_url
from shards.tokenizer import Spelling, read_set_spelling, read_tokenizer_json
from train.chat.labels import Marking, open_chat_marking
from train.config import Config
from train.evaluation.dealing import Dealer
from train.evaluation.items import read_task
from train.evaluation.perplexity import NotFiniteError, predict_together
from train.evaluation.shots import Shots, add_shots
from train.evaluation.tasks import EncodedTask, Encoding, Limits, encode_task, score_task
from train.evaluation.windows import (
    Window,
    check_tokenizer,
    cut_split,
    group_windows,
    read_windows,
)
from train.start.documents import find_marks, separated
from train.start.report import LABEL_WIDTH
from train.words.words import split_name

Metrics = dict[str, float | None]
Found = TypeVar("Found")

NAME = re.compile(r"[\w][\w.-]*")
# Of what is found, these are metrics.
OF_SETS = ("loss", "loss_stderr", "bits_per_byte", "bits_per_byte_stderr")
SCORES = ("acc", "acc_norm", "acc_bytes")
OF_TASKS = (*(name + end for name in SCORES for end in ("", "_stderr")), "perplexity")
# The most windows or choices that are computed together, however short they are.
MAX_ROWS = 512
# What stands between a context and a choice.
DELIMITER = " "


@dataclass(frozen=True)
class EvalSet:
    """Windows of a set, which a run predicts on its way."""

    name: str
    split: str
    stream: TokenStream
    spelling: Spelling
    marks: Marks | None
    windows: Sequence[Window]
    # What the rows of a packed set end in.
    padding: int | None
    # What makes the labels of rows, of a set of chats.
    marking: Marking | None

    @property
    def key(self) -> str:
        """How the names of its metrics begin."""
        return f"sets/{self.name}"

    @property
    def metric(self) -> str:
        """The metric whose presence in the log shows that it was evaluated."""
        return f"{self.key}/loss"

    def measure(self, dealer: Dealer, model: Transformer, limits: Limits) -> Metrics:
        """Its metrics by their last names; NotFiniteError or Stopped."""
        size = max(min(limits.rows, limits.tokens // self.windows[0].size), 1)
        groups = group_windows(iter(self.windows), size)
        read = partial(read_windows, self.stream)
        with separated(model, self.marks):
            rows = groups, read, self.padding, self.marking
            found = predict_together(dealer, self.key, model, self.spelling, *rows)
        described = found.describe()
        return {name: described[name] for name in OF_SETS}

    def describe(self) -> str:
        """What it is, for the screen."""
        return f"{self.name} ({self.split}, {format_plural(len(self.windows), 'window')})"


@dataclass(frozen=True)
class EvalTask:
    """A task that a run is given on its way."""

    name: str
    encoded: EncodedTask

    @property
    def key(self) -> str:
        """How the names of its metrics begin."""
        return f"tasks/{self.name}"

    @property
    def metric(self) -> str:
        """The metric whose presence in the log shows that it was evaluated."""
        return f"{self.key}/acc"

    def measure(self, dealer: Dealer, model: Transformer, limits: Limits) -> Metrics:
        """Its metrics by their last names; NotFiniteError or Stopped."""
        with separated(model, None):
            found = score_task(dealer, model, self.encoded, limits)
        return {name: found[name] for name in OF_TASKS if name in found}

    def describe(self) -> str:
        """What it is, for the screen."""
        count = format_plural(len(self.encoded.task.items), "item")
        cut = f", {self.encoded.num_cut:,} cut" if self.encoded.num_cut else ""
        return f"{self.name} ({count}{cut})"


@dataclass(frozen=True)
class Evaluations:
    """All that a run evaluates on its way."""

    sets: Sequence[EvalSet]
    tasks: Sequence[EvalTask]
    set_steps: int
    task_steps: int
    last_step: int

    def list_due(self, step: int) -> list[EvalSet | EvalTask]:
        """What is evaluated after `step` steps."""
        due: list[EvalSet | EvalTask] = []
        for some, steps in ((self.sets, self.set_steps), (self.tasks, self.task_steps)):
            if step and (step % steps == 0 or step == self.last_step):
                due += some
        return due

    def describe(self) -> Iterator[str]:
        """What is evaluated and how often, for the screen."""
        for some, steps in ((self.sets, self.set_steps), (self.tasks, self.task_steps)):
            if some:
                yield f"every {steps:,} steps, {', '.join(each.describe() for each in some)}"


def measure_each(
    due: Sequence[EvalSet | EvalTask], model: Transformer, dealer: Dealer, max_tokens: int
) -> Iterator[tuple[str, Metrics | None]]:
    """The metrics of each, by how their names begin; None if they are no numbers.

    At most so many tokens are computed at once. The model is afterwards as it was: its compiled
    blocks are for training's shapes, and tasks have many. Raises Stopped.
    """
    limits = Limits(MAX_ROWS, max_tokens)
    for each in due:
        try:
            with model.uncompiled():
                found = each.measure(dealer, model, limits)
        except NotFiniteError:
            yield each.key, None
        else:
            yield each.key, found


def open_evaluations(config: Config, shards: Shards, say: Say) -> Evaluations:
    """What the settings ask for, said; ValueError with one line for what cannot be evaluated."""
    training = config.training
    manifest = shards.manifest
    boundaries = Boundaries(manifest.end_of_text, manifest.begin_of_text)

    @cache  # Loaded only if something is asked for.
    def load_encoding() -> Encoding:
        tokenizer = KeptTokenizer(read_tokenizer_json(shards.folder / TOKENIZER), boundaries).load()
        return Encoding(tokenizer, boundaries.first, config.model.context)

    def open_set(name: str, path: str) -> EvalSet:
        refuse_url(path)
        found = open_shards(path)
        whose = f"that of the run's set, {shards.folder}"
        check_tokenizer(found, load_encoding().tokenizer, config.model.num_ids, whose)
        return cut_set(name, found, config)

    def open_task(name: str, path: str) -> EvalTask:
        if not Path(path).is_file():
            raise ValueError(f"{path}: no such file; expected one with an item on each line")
        task = add_shots(read_task(path), Shots(training.eval_task_shots), DELIMITER)
        return EvalTask(name, encode_task(load_encoding(), task, DELIMITER))

    evaluations = Evaluations(
        open_all("training.eval_sets", training.eval_sets, open_set),
        open_all("training.eval_tasks", training.eval_tasks, open_task),
        training.eval_steps,
        training.eval_task_steps or training.eval_steps,
        training.num_training_steps,
    )
    for text in evaluations.describe():
        say(f"{'evaluation':<{LABEL_WIDTH}} {text}")
    return evaluations


def open_all(
    setting: str, entries: Sequence[str], open_one: Callable[[str, str], Found]
) -> list[Found]:
    """What a setting names, opened, in the order of the names; ValueError begins with `setting`."""
    paths: dict[str, str] = {}
    for entry in entries:
        name, path = split_name(entry)
        if name is None:
            whole = Path(os.path.abspath(path))
            name = whole.stem if whole.is_file() else whole.name
        if not NAME.fullmatch(name):
            raise ValueError(
                f"{setting}: {entry} would be called {name!r}; give it a name of letters, digits, "
                f". _ and -, such as name={path}"
            )
        if name in paths:
            raise ValueError(
                f"{setting}: {paths[name]} and {path} are both called {name}; give one another "
                f"name, such as {name}-2={path}"
            )
        paths[name] = path
    opened = []
    for name, path in sorted(paths.items()):
        try:
            opened.append(open_one(name, path))
        except (ValueError, OSError) as error:
            raise ValueError(f"{setting}: {error}") from None
    return opened


def cut_set(name: str, shards: Shards, config: Config) -> EvalSet:
    """The first windows of a set's validation split or, if it has none, of its train split."""
    length = config.data.max_seq_length
    split = "validation" if shards.manifest.num_tokens("validation") else "train"
    check_row_tokens(shards.manifest, length)
    total, windows = cut_split(shards.manifest, split, length, length)
    count = min(total, config.training.eval_windows)
    if not count:
        raise ValueError(
            f"{shards.folder}: its {split} split has {shards.manifest.num_tokens(split):,} tokens, "
            f"fewer than a window of {length + 1:,} (data.max_seq_length plus one)"
        )
    return EvalSet(
        name,
        split,
        shards.stream(split, config.data.checks_first_reads),
        read_set_spelling(shards.folder, shards.manifest),
        find_marks(config.data, shards.manifest),
        [*islice(windows, count)],
        find_padding(shards.manifest),
        open_chat_marking(shards, split),
    )

"""Which documents a step saw, and which steps saw a document.

Steps are numbered as in the log, where the first update is step 1.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.checkpoints.seal import list_checkpoints
from shards.documents import Document
from shards.edit.versions import find_version
from shards.inspect.show import choose_documents
from shards.inspect.trace import Spans, count_overlap, trace_samples, trace_tokens
from shards.order import SampleOrder, make_order
from shards.reader import Shards
from shards.screen.lines import Say
from shards.where.choice import Choice, choose_windows
from train.checkpoints.history import History, plan_history, samples_of_step, step_of_sample
from train.checkpoints.position import (
    TRAINING_STATE,
    check_same_choice,
    read_position,
    read_run_config,
)
from train.config import Config

DEFAULT_RUN = Path("checkpoints")
# More than any run takes: they are held in memory.
MAX_STEP_SAMPLES = 1 << 22
# Epochs of a run in which a document is looked for, one by one.
MAX_EPOCHS = 1 << 17
# Steps listed per document, at most, in a report on many documents.
MAX_LISTED_STEPS = 20
LEFT_OUT = "left out by the run's data.where, so no step saw it"


@dataclass(frozen=True)
class Tracer:
    """A run's sample order over its shards, and how many steps it has."""

    shards: Shards
    order: SampleOrder
    history: History
    num_steps: int
    # What the run reads of the train split: the order is over these tokens.
    choice: Choice

    def documents_of_step(self, step: int) -> Iterator[tuple[int, Spans, list[Document]]]:
        """For each sample of a step: its number, where its tokens are in train, its documents."""
        if not 1 <= step <= self.num_steps:
            raise ValueError(f"step {step}: the run has steps 1 to {self.num_steps:,}")
        samples = np.array(samples_of_step(self.history, step - 1))
        return trace_samples(self.shards, "train", self.order, samples, self.choice)

    def leaves_out(self, start: int, stop: int) -> bool:
        """Whether data.where left out all tokens [start, stop) of train: no step saw them."""
        first, last = self.choice.inside(start, stop)
        return first == last

    def count_samples(self, step: int) -> int:
        """How many samples a step saw."""
        return len(samples_of_step(self.history, step - 1))

    def steps_of_document(self, document: Document) -> list[int]:
        """The run's steps, ascending, in which a sample held any token of the document."""
        return self.steps_of_tokens(document.start, document.stop)

    def steps_of_tokens(self, start: int, stop: int) -> list[int]:
        """The run's steps, ascending, in which a sample held any token of [start, stop) of train.

        Raises ValueError for a run of very many epochs.
        """
        start, stop = self.choice.inside(start, stop)
        if start == stop:
            return []
        num_samples = samples_of_step(self.history, self.num_steps - 1).stop
        epochs = num_samples // self.order.windows_per_epoch
        if epochs > MAX_EPOCHS:
            raise ValueError(
                f"the run reads the set {epochs:,} times; a document is looked for in at most "
                f"{MAX_EPOCHS:,} epochs, so ask for single steps with --step"
            )
        samples = trace_tokens(self.order, start, stop, num_samples)
        steps = {step_of_sample(self.history, sample) for sample in samples}
        return sorted(step + 1 for step in steps if step is not None)


def trace_run(shards: Shards, folder: Path) -> Tracer:
    """A tracer for a run that left checkpoints, over the steps its newest one has done."""
    checkpoint = folder
    if not (folder / TRAINING_STATE).is_file():
        checkpoints = list_checkpoints(folder)
        if not checkpoints:
            raise ValueError(
                f"{folder}: no checkpoint in it; name a run's folder with --run, or give its "
                "settings with --config and --ranks"
            )
        checkpoint = checkpoints[0]
    position = read_position(checkpoint)
    version = find_version(shards.folder, shards.manifest, position.dataset_id)
    if version is None:
        raise ValueError(
            f"{checkpoint}: was trained on dataset_id {position.dataset_id}, "
            f"but {shards.folder} is {shards.manifest.dataset_id}"
        )
    config, num_tokens = read_run_config(checkpoint), version.num_tokens("train")
    tracer = make_tracer(shards, config, position.history, position.step, num_tokens)
    check_same_choice(tracer.choice, position, checkpoint)
    return tracer


def find_run(shards: Shards, folder: Path | None, say: Say) -> Tracer | None:
    """The run whose steps are reported; None if none was named and the default one does not fit."""
    if folder is not None:
        return trace_run(shards, folder)
    if not DEFAULT_RUN.is_dir():
        return None
    try:
        return trace_run(shards, DEFAULT_RUN)
    except ValueError as error:
        say(f"{error}; no steps are reported (name a run with --run)")
        return None


def trace_settings(shards: Shards, config: Config, num_ranks: int) -> Tracer:
    """A tracer for a run with these settings, over all its steps.

    Raises ValueError for a number of ranks that no run has.
    """
    per_step = config.samples_per_step(num_ranks)
    if num_ranks < 1 or per_step > MAX_STEP_SAMPLES:
        per_rank = config.samples_per_step(1)
        raise ValueError(
            f"--ranks {num_ranks!s:.60} x {per_rank:,} samples a rank: expected at least 1 rank, "
            f"and at most {MAX_STEP_SAMPLES:,} samples a step"
        )
    history = plan_history(config.list_batches(num_ranks))
    return make_tracer(shards, config, history, config.training.num_training_steps)


def make_tracer(
    shards: Shards,
    config: Config,
    history: History,
    num_steps: int,
    num_tokens: int | None = None,
) -> Tracer:
    """A tracer over the train split, or over its first `num_tokens` if the run had no more."""
    length, seed = config.data.max_seq_length, config.infrastructure.seed
    choice = choose_windows(shards, config.data.where, length, num_tokens)
    order = make_order(shards.manifest, length, seed, choice.num_tokens)
    return Tracer(shards, order, history, num_steps, choice)


def describe_documents(tracer: Tracer, step: int) -> Iterator[str]:
    """A step's documents, one line for each that a sample holds tokens of."""
    for sample, spans, documents in tracer.documents_of_step(step):
        places = ", ".join(f"{start} to {stop}" for start, stop in spans)
        yield f"sample {sample}: tokens {places} of train"
        for document in documents:
            state = "removed" if document.is_blank else document.doc_hash
            yield (
                f"  {count_overlap(document, spans)} tokens of {state} {document.source_file} "
                f"row {document.source_row} {document.url or ''}".rstrip()
            )


def describe_steps(tracer: Tracer, url: str | None, doc_hash: str | None) -> Iterator[str]:
    """For each document with this URL or hash, the steps that saw it."""
    for split, document in choose_documents(tracer.shards, "train", None, url, doc_hash):
        name = document.label
        if split != "train":
            yield f"{name}: in {split}, which no step sees"
            continue
        if tracer.leaves_out(document.start, document.stop):
            yield f"{name}: {LEFT_OUT}"
            continue
        steps = tracer.steps_of_document(document)
        seen = f"steps {', '.join(map(str, steps))}" if steps else "no step"
        yield f"{name}: {seen} of 1 to {tracer.num_steps}"


def list_steps(steps: list[int], count: int) -> str:
    """The first MAX_LISTED_STEPS of `count` steps, in words; `steps` has at least as many.

    >>> list_steps([], 0), list_steps([17, 418], 2), list_steps([*range(1, 21)], 22)[-10:]
    ('no step', 'steps 17, 418', 'and 2 more')
    """
    if not count:
        return "no step"
    listed = "steps " + ", ".join(map(str, steps[:MAX_LISTED_STEPS]))
    more = count - MAX_LISTED_STEPS
    return f"{listed} and {more:,} more" if more > 0 else listed


def describe_sightings(tracer: Tracer, documents: Iterable[Document]) -> Iterator[str]:
    """For each document of the train split, the steps that saw it; then the totals."""
    num_documents, num_seen = 0, 0
    all_steps: set[int] = set()
    for document in documents:
        steps = tracer.steps_of_document(document)
        num_documents += 1
        num_seen += bool(steps)
        all_steps.update(steps)
        is_left_out = tracer.leaves_out(document.start, document.stop)
        yield f"{document.label}: {LEFT_OUT if is_left_out else list_steps(steps, len(steps))}"
    yield (
        f"{num_seen:,} of {num_documents:,} documents were seen, "
        f"in {len(all_steps):,} of {tracer.num_steps:,} steps"
    )

"""Which documents a step saw, and which steps saw a document.

Steps are numbered as in the log, where the first update is step 1.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from model.checkpoints.seal import list_checkpoints
from shards.documents import Document
from shards.edit.versions import find_version
from shards.format import Int64
from shards.inspect.show import NoDocumentError, choose_documents
from shards.inspect.trace import trace_samples, trace_tokens
from shards.mixture.entries import compute_shares
from shards.mixture.mixture import ALONE, Mixture, Stage
from shards.order import SampleOrder, make_order
from shards.reader import Shards, open_shards
from shards.screen.lines import Say
from train.checkpoints.history import History, plan_history, samples_of_step, step_of_sample
from train.checkpoints.position import TRAINING_STATE, read_position, read_run_config
from train.config import Config

DEFAULT_RUN = Path("checkpoints")
# More than any run takes: they are held in memory.
MAX_STEP_SAMPLES = 1 << 22
# Epochs of a run in which a document is looked for, one by one.
MAX_EPOCHS = 1 << 17
# Steps listed per document, at most, in a report on many documents.
MAX_LISTED_STEPS = 20


@dataclass(frozen=True)
class Tracer:
    """A run's sample order over one of its sets, and how many steps it has."""

    shards: Shards
    order: SampleOrder
    history: History
    num_steps: int
    # How the run's samples are dealt out to its sets, and which of them this one is.
    mixture: Mixture = ALONE
    number: int = 0

    def documents_of_step(self, step: int) -> Iterator[tuple[int, int, list[Document]]]:
        """For each sample of a step that is of this set: its number, its start, its documents."""
        samples = self.list_samples(step)
        sets, own = self.mixture.locate(samples)
        here = sets == self.number
        traced = trace_samples(self.shards, "train", self.order, own[here])
        for sample, (_, start, documents) in zip(samples[here].tolist(), traced, strict=True):
            yield sample, start, documents

    def list_samples(self, step: int) -> Int64:
        """All samples of a step; ValueError if the run has no such step."""
        if not 1 <= step <= self.num_steps:
            raise ValueError(f"step {step}: the run has steps 1 to {self.num_steps:,}")
        return np.array(samples_of_step(self.history, step - 1))

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
        total = samples_of_step(self.history, self.num_steps - 1).stop
        num_samples = int(self.mixture.count(total)[self.number])
        epochs = num_samples // self.order.windows_per_epoch
        if epochs > MAX_EPOCHS:
            raise ValueError(
                f"the run reads the set {epochs:,} times; a document is looked for in at most "
                f"{MAX_EPOCHS:,} epochs, so ask for single steps with --step"
            )
        own = np.array(trace_tokens(self.order, start, stop, num_samples), np.int64)
        samples = self.mixture.find(self.number, own).tolist()
        steps = {step_of_sample(self.history, sample) for sample in samples}
        return sorted(step + 1 for step in steps if step is not None)


def trace_run(shards: Shards, folder: Path) -> Tracer:
    """A tracer for a run that left checkpoints, over the steps its newest one has done.

    ValueError if the run has not read this set.
    """
    checkpoint = find_checkpoint(folder)
    position, config = read_position(checkpoint), read_run_config(checkpoint)
    for number, dataset_id in enumerate(position.dataset_ids):
        version = find_version(shards.folder, shards.manifest, dataset_id)
        if version is not None:
            tokens = version.num_tokens("train")
            tracer = make_tracer(shards, config, position.history, position.step, tokens)
            return replace(tracer, mixture=position.mixture, number=number)
    raise ValueError(
        f"{checkpoint}: was trained on dataset_id {', '.join(position.dataset_ids)}, "
        f"but {shards.folder} is {shards.manifest.dataset_id}"
    )


def trace_sets(folder: Path | None, run: Path) -> list[Tracer]:
    """Tracers for a run that left checkpoints: over this set, or over all where it read them last.

    ValueError if one is not there, or the run has not read it.
    """
    folders = (
        [folder] if folder is not None else list_folders(read_run_config(find_checkpoint(run)))
    )
    return [trace_run(open_shards(name), run) for name in folders]


def plan_sets(folder: Path | None, config: Config, num_ranks: int) -> list[Tracer]:
    """The same for a run with these settings, over all its steps."""
    folders = [folder] if folder is not None else list_folders(config)
    return [trace_settings(open_shards(name), config, num_ranks) for name in folders]


def list_folders(config: Config) -> list[Path]:
    """The folders of all sets that a run reads."""
    return [Path(entry.shards) for entry in config.data.entries]


def find_checkpoint(folder: Path) -> Path:
    """The newest checkpoint in a run's folder, or the folder if it is one; ValueError for none."""
    if (folder / TRAINING_STATE).is_file():
        return folder
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        raise ValueError(
            f"{folder}: no checkpoint in it; name a run's folder with --run, or give its "
            "settings with --config and --ranks"
        )
    return checkpoints[0]


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

    Raises ValueError for a number of ranks that no run has, and a set that is not in its mixture.
    """
    per_step = config.samples_per_step(num_ranks)
    if num_ranks < 1 or per_step > MAX_STEP_SAMPLES:
        per_rank = config.samples_per_step(1)
        raise ValueError(
            f"--ranks {num_ranks!s:.60} x {per_rank:,} samples a rank: expected at least 1 rank, "
            f"and at most {MAX_STEP_SAMPLES:,} samples a step"
        )
    history = plan_history(config.list_batches(num_ranks))
    tracer = make_tracer(shards, config, history, config.training.num_training_steps)
    if config.data.mixture is None:
        return tracer
    folders = list_folders(config)
    if shards.folder not in folders:
        raise ValueError(
            f"{shards.folder}: is not one of the sets in data.mixture, "
            f"{', '.join(map(str, folders))}"
        )
    shares = compute_shares([entry.weight for entry in config.data.mixture])
    mixture = Mixture((Stage(0, shares),))
    return replace(tracer, mixture=mixture, number=folders.index(shards.folder))


def make_tracer(
    shards: Shards,
    config: Config,
    history: History,
    num_steps: int,
    num_tokens: int | None = None,
) -> Tracer:
    """A tracer over the train split, or over its first `num_tokens` if the run had no more."""
    length, seed = config.data.max_seq_length, config.infrastructure.seed
    order = make_order(shards.manifest, length, seed, num_tokens)
    return Tracer(shards, order, history, num_steps)


def describe_documents(tracers: Sequence[Tracer], step: int) -> Iterator[str]:
    """A step's documents in the traced sets, one line for each that a sample holds tokens of."""
    lines: dict[int, list[str]] = {}
    for tracer in tracers:
        for sample, start, documents in tracer.documents_of_step(step):
            lines[sample] = [*describe_sample(tracer, sample, start, documents)]
    for sample in tracers[0].list_samples(step).tolist():
        yield from lines.get(sample, [f"sample {sample}: of another set; name its folder"])


def describe_sample(
    tracer: Tracer, sample: int, start: int, documents: Sequence[Document]
) -> Iterator[str]:
    """A sample, and below it a line for each document that it holds tokens of."""
    stop = start + tracer.order.window_tokens
    which = f" of {tracer.shards.folder}" if tracer.mixture.num_sets > 1 else ""
    yield f"sample {sample}: tokens {start} to {stop} of train{which}"
    for document in documents:
        first, last = max(start, document.start), min(stop, document.stop)
        state = "removed" if document.is_blank else document.doc_hash
        yield (
            f"  {last - first} tokens of {state} {document.source_file} "
            f"row {document.source_row} {document.url or ''}".rstrip()
        )


def describe_steps(
    tracers: Sequence[Tracer], url: str | None, doc_hash: str | None
) -> Iterator[str]:
    """For each document with this URL or hash in the traced sets, the steps that saw it.

    NoDocumentError if none of them has one.
    """
    found: list[tuple[Tracer, str, Document]] = []
    for tracer in tracers:
        try:
            chosen = choose_documents(tracer.shards, "train", None, url, doc_hash)
        except NoDocumentError:
            if tracer is tracers[-1] and not found:
                raise
            continue
        found += [(tracer, split, document) for split, document in chosen]
    for tracer, split, document in found:
        name = document.label
        if split != "train":
            yield f"{name}: in {split}, which no step sees"
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
        yield f"{document.label}: {list_steps(steps, len(steps))}"
    yield (
        f"{num_seen:,} of {num_documents:,} documents were seen, "
        f"in {len(all_steps):,} of {tracer.num_steps:,} steps"
    )

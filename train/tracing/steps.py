"""Which documents a step saw, and which steps saw a document.

Steps are numbered as in the log, where the first update is step 1.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.checkpoints.seal import list_checkpoints
from shards.documents import Document
from shards.edit.versions import find_version
from shards.format import Int64
from shards.inspect.show import NoDocumentError, choose_documents
from shards.inspect.trace import Spans, count_overlap, trace_mixture, trace_tokens
from shards.mixture.entries import compute_shares
from shards.mixture.mixture import ALONE, Mixture, Stage
from shards.mixture.sets import MixedOrder, Sets, Source, open_source
from shards.order import SampleOrder
from shards.reader import Shards, open_shards
from shards.screen.lines import Say
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
    """A run's sample order over one of its sets, and how many steps it has."""

    shards: Shards
    history: History
    num_steps: int
    # What the run reads of the set: once, or several times with documents of its own each.
    samples: MixedOrder

    @property
    def sources(self) -> dict[int, Source]:
        """What the run reads of the set, by its number among all that it reads."""
        return dict(zip(self.samples.numbers, self.samples.sets.sources, strict=True))

    @property
    def order(self) -> SampleOrder:
        """The order of the set's own samples; of several, the first."""
        return self.samples.sets.sources[0].order

    def documents_of_step(self, step: int) -> Iterator[tuple[int, Spans, list[Document]]]:
        """For each sample of a step that is of this set: its number, its tokens, its documents.

        Its tokens are where they are in the train split.
        """
        for sample, _, spans, documents in trace_mixture(self.samples, self.list_samples(step)):
            yield sample, spans, documents

    def list_samples(self, step: int) -> Int64:
        """All samples of a step; ValueError if the run has no such step."""
        if not 1 <= step <= self.num_steps:
            raise ValueError(f"step {step}: the run has steps 1 to {self.num_steps:,}")
        return np.array(samples_of_step(self.history, step - 1))

    def leaves_out(self, start: int, stop: int) -> bool:
        """Whether data.where left out all tokens [start, stop) of train: no step saw them."""
        return all(s.choice.leaves_out(start, stop) for s in self.samples.sets.sources)

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
        mixture, total = self.samples.mixture, samples_of_step(self.history, self.num_steps - 1)
        samples: list[int] = []
        for number, source in self.sources.items():
            first, last = source.choice.inside(start, stop)
            if first == last:
                continue
            num_samples = int(mixture.count(total.stop)[number])
            epochs = num_samples // source.order.windows_per_epoch
            if epochs > MAX_EPOCHS:
                raise ValueError(
                    f"the run reads the set {epochs:,} times; a document is looked for in at most "
                    f"{MAX_EPOCHS:,} epochs, so ask for single steps with --step"
                )
            own = np.array(trace_tokens(source.order, first, last, num_samples), np.int64)
            samples += mixture.find(number, own).tolist()
        steps = {step_of_sample(self.history, sample) for sample in samples}
        return sorted(step + 1 for step in steps if step is not None)


def trace_run(shards: Shards, folder: Path) -> Tracer:
    """A tracer for a run that left checkpoints, over the steps its newest one has done.

    ValueError if the run has not read this set.
    """
    checkpoint = find_checkpoint(folder)
    position, config = read_position(checkpoint), read_run_config(checkpoint)
    found: dict[int, Source] = {}
    for number, known in enumerate(position.sets):
        version = find_version(shards.folder, shards.manifest, known.dataset_id)
        if version is not None:
            found[number] = open_part(shards, config, known.where, version.num_tokens("train"))
            check_same_choice(found[number].choice, known, checkpoint)
    if not found:
        raise ValueError(
            f"{checkpoint}: was trained on dataset_id {', '.join(position.dataset_ids)}, "
            f"but {shards.folder} is {shards.manifest.dataset_id}"
        )
    order = order_parts(found, position.mixture)
    return Tracer(shards, position.history, position.step, order)


def open_part(
    shards: Shards, config: Config, where: str | None, num_tokens: int | None = None
) -> Source:
    """What a run reads of a set: all, or of its first `num_tokens` if it had no more."""
    length = config.data.max_seq_length or shards.manifest.row_tokens or 1  # 0 is auto.
    return open_source(shards, where, length, config.infrastructure.seed, num_tokens)


def order_parts(found: Mapping[int, Source], mixture: Mixture) -> MixedOrder:
    """The order of a run's samples, of which only those of one set are looked up."""
    shares = tuple(mixture.shares[number] for number in found)
    return MixedOrder(Sets(tuple(found.values()), shares), mixture, tuple(found))


def trace_sets(folder: Path | None, run: Path) -> list[Tracer]:
    """Tracers for a run that left checkpoints: over this set, or over all where it read them last.

    ValueError if one is not there, or the run has not read it.
    """
    folders = (
        [folder] if folder is not None else list_folders(read_run_config(find_checkpoint(run)))
    )
    return [trace_run(open_shards(name), run) for name in dict.fromkeys(folders)]


def plan_sets(folder: Path | None, config: Config, num_ranks: int) -> list[Tracer]:
    """The same for a run with these settings, over all its steps."""
    folders = [folder] if folder is not None else list_folders(config)
    return [trace_settings(open_shards(name), config, num_ranks) for name in dict.fromkeys(folders)]


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
    num_steps = config.training.num_training_steps
    if config.data.mixture is None:
        return make_tracer(shards, config, history, num_steps)
    entries = {
        number: entry
        for number, entry in enumerate(config.data.mixture)
        if Path(entry.shards) == shards.folder
    }
    if not entries:
        names = ", ".join(str(name) for name in list_folders(config))
        raise ValueError(f"{shards.folder}: is not one of the sets in data.mixture, {names}")
    shares = compute_shares([entry.weight for entry in config.data.mixture])
    found = {number: open_part(shards, config, entry.where) for number, entry in entries.items()}
    order = order_parts(found, Mixture((Stage(0, shares),)))
    return Tracer(shards, history, num_steps, order)


def make_tracer(
    shards: Shards,
    config: Config,
    history: History,
    num_steps: int,
    num_tokens: int | None = None,
) -> Tracer:
    """A tracer over the train split, or over its first `num_tokens` if the run had no more."""
    source = open_part(shards, config, config.data.where, num_tokens)
    return Tracer(shards, history, num_steps, order_parts({0: source}, ALONE))


def describe_documents(tracers: Sequence[Tracer], step: int) -> Iterator[str]:
    """A step's documents in the traced sets, one line for each that a sample holds tokens of."""
    samples = tracers[0].list_samples(step)
    traced = {
        number: (tracer, documents)
        for tracer in tracers
        for documents in [tracer.documents_of_step(step)]
        for number in tracer.sources
    }
    sets, _ = tracers[0].samples.mixture.locate(samples)
    for sample, number in zip(samples.tolist(), sets.tolist(), strict=True):
        if number not in traced:
            yield f"sample {sample}: of another set; name its folder"
            continue
        tracer, found = traced[number]
        _, spans, documents = next(found)
        yield from describe_sample(tracer, sample, spans, documents)


def describe_sample(
    tracer: Tracer, sample: int, spans: Spans, documents: Sequence[Document]
) -> Iterator[str]:
    """A sample, and below it a line for each document that it holds tokens of."""
    places = ", ".join(f"{start} to {stop}" for start, stop in spans)
    which = f" of {tracer.shards.folder}" if tracer.samples.mixture.num_sets > 1 else ""
    yield f"sample {sample}: tokens {places} of train{which}"
    for document in documents:
        state = "removed" if document.is_blank else document.doc_hash
        yield (
            f"  {count_overlap(document, spans)} tokens of {state} {document.source_file} "
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

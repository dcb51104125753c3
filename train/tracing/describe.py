"""What a step saw, and which steps saw a document, as lines of text."""

from collections.abc import Iterable, Iterator, Sequence

from shards.documents import Document
from shards.inspect.show import NoDocumentError, choose_documents
from shards.inspect.trace import Spans, count_overlap
from train.tracing.steps import Tracer

# Steps listed per document, at most, in a report on many documents.
MAX_LISTED_STEPS = 20
LEFT_OUT = "left out by the run's data.where, so no step saw it"


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

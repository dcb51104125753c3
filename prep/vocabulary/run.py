"""`velocity tokenizer train` from its options to the finished folder."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from prep.readers.documents import BadDocument
from prep.readers.formats import estimate_text_bytes
from prep.sources.local import Source, find_sources
from prep.vocabulary.folder import expect_writable, is_finished, write_folder
from prep.vocabulary.forecast import estimate_memory
from prep.vocabulary.passages import choose_files
from prep.vocabulary.patterns import check_special_tokens, make_splitter
from prep.vocabulary.report import make_report
from prep.vocabulary.request import TrainRequest
from prep.vocabulary.survey import Survey, survey_text
from prep.vocabulary.train import TrainJob, train_apart
from shards.disk.json_files import Json
from shards.disk.memory import find_memory
from shards.screen.lines import ReadProgress, Say, format_bytes

# Of more files than this many times --train-bytes need, the others are not read at all.
READ_TIMES = 10


def train_tokenizer(request: TrainRequest, say: Say) -> Json | None:
    """Train, measure and write a tokenizer; the report, or None if it is there already.

    Raises ValueError or OSError, in one line, for what is wrong with the options or the text.
    """
    check_special_tokens(request.pattern, request.special_tokens)
    sources = find_sources(request.inputs, request.text_column, say)
    # As the file has it: tuples are lists.
    made_of: Json = json.loads(
        json.dumps({"settings": request.settings, "sources": identify(sources)})
    )
    if is_finished(request.out, made_of):
        return None
    expect_writable(request.out)
    chosen, survey = choose_text(sources, request, say)
    say(describe_need(survey, request))
    job = TrainJob(tuple(chosen), request, survey.choice, survey.train_bytes)
    trained = train_apart(job)
    if trained.held_out:
        say("measuring it on the text that was held out")
    # The special tokens come last, the end of a document first of them.
    end_of_text = request.vocab_size - len(request.special_tokens)
    report = {
        **made_of,
        "text": {
            "files": len(sources),
            "files_read": len(chosen),
            "bytes_read": survey.text_bytes,
            "train_bytes": survey.train_bytes,
            "bad_documents": survey.left_out.num_documents,
            "bad_files": survey.left_out.files,
        },
        **make_report(trained.tokenizer_json, end_of_text, trained.held_out),
        "tokenizer_sha256": hashlib.sha256(trained.tokenizer_json.encode("utf-8")).hexdigest(),
        "versions": {"tokenizers": version("tokenizers")},
    }
    write_folder(request.out, request, trained.tokenizer_json, report)
    return report


def identify(sources: Sequence[Source]) -> Json:
    """What tells the same text from another: the files' names and sizes."""
    listed = json.dumps([[source.name, source.num_bytes] for source in sources])
    return {
        "files": len(sources),
        "bytes": sum(source.num_bytes for source in sources),
        "sha256": hashlib.sha256(listed.encode("utf-8")).hexdigest(),
    }


def choose_text(
    sources: Sequence[Source], request: TrainRequest, say: Say
) -> tuple[list[Source], Survey]:
    """The files to read, and what is chosen from them, read once."""
    estimates = [estimate(source, request) for source in sources]
    chosen = choose_files(sources, estimates, READ_TIMES * request.train_bytes)
    if len(chosen) < len(sources):
        say(f"{len(chosen):,} of {len(sources):,} files are read, chosen by their names' hashes")
    num_bytes = dict(zip([source.name for source in sources], estimates, strict=True))
    with reading(sum(num_bytes[source.name] for source in chosen)) as progress:
        return chosen, survey_text(chosen, request, progress.add)


def estimate(source: Source, request: TrainRequest) -> int:
    """About how many bytes of text a file has."""
    try:
        return estimate_text_bytes(Path(source.path), request.text_column)
    except BadDocument:
        if request.skips_bad:
            return 0
        raise


@contextmanager
def reading(num_bytes: int) -> Iterator[ReadProgress]:
    """A line of progress, wiped off at the end."""
    progress = ReadProgress("bytes of text read", num_bytes)
    try:
        yield progress
    finally:
        progress.finish()


def describe_need(survey: Survey, request: TrainRequest) -> str:
    """What training reads and takes, in a line; ValueError if that is more than the machine has."""
    memory = estimate_memory(survey.sample, make_splitter(request.pattern), survey.train_bytes)
    line = (
        f"training on {format_bytes(survey.train_bytes)} of {format_bytes(survey.text_bytes)} of "
        f"text takes about {format_bytes(memory)} of memory"
    )
    there = find_memory()
    if there is not None and memory > there[0]:
        raise ValueError(
            f"{line}, and this machine has {format_bytes(there[0])}; try a smaller --train-bytes, "
            "such as a tenth of that"
        )
    return f"{line}; {format_bytes(survey.held_out_bytes)} is held out"

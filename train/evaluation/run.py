"""`velocity eval`, from the request to what is shown: one checkpoint, or all of a run."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

import numpy as np

from model.checkpoints.seal import step_of
from model.decode.generator import Generator
from model.sample.over_run import load_each
from model.sample.prompts import read_text
from shards.disk.json_files import Json
from shards.format import SPLITS
from shards.order import find_padding
from shards.reader import Shards, open_shards
from shards.screen.lines import Say
from shards.tokenizer import encode_plainly, read_set_spelling, read_spelling
from train.checkpoints.position import RUN_CONFIG, read_run_config
from train.evaluation.chats import encode_chats
from train.evaluation.code.exam import Exam, prepare_exam
from train.evaluation.contamination import Contamination, Seen
from train.evaluation.dealing import make_lone_dealer
from train.evaluation.items import Task, read_task
from train.evaluation.perplexity import Prediction, predict
from train.evaluation.request import Measured, Request, Solved
from train.evaluation.shots import Shots, add_shots
from train.evaluation.show import describe_report, describe_reports
from train.evaluation.tasks import EncodedTask, Encoding, Limits, encode_task, score_task
from train.evaluation.windows import (
    check_tokenizer,
    cut_split,
    cut_windows,
    read_set_batches,
    read_text_batches,
)
from train.start.documents import find_marks, separated

Load = Callable[[Path], Generator]


@dataclass(frozen=True)
class Text:
    """A text that is to be predicted, read once for all checkpoints."""

    name: str
    content: str
    # What a training set has of it, if that was asked.
    seen: Seen | None = None


def evaluate(ckpt: Path, request: Request, load: Load, say: Say) -> Iterator[str]:
    """The lines of the answer, for people or as JSON.

    Raises ValueError with one line for what cannot be evaluated; with `all`, a checkpoint that
    cannot be loaded is said and passed over.
    """
    solved, reports = request.solved, []
    tasks = [read_task(name) for name in solved.task]
    texts = [Text(name, read_text(name)) for name in request.measured.text]
    known: list[Sequence[bool] | None] = [None for _ in tasks]
    if solved.contamination is not None:
        contamination = Contamination(solved.contamination, solved.ngram, solved.delimiter)
        known = [contamination.find_clean(task.items) for task in tasks]
        texts = [replace(text, seen=contamination.find_seen(text.content)) for text in texts]
    shots = Shots(solved.shots, solved.shots_from, solved.shots_seed)
    tasks = [add_shots(task, shots, solved.delimiter) for task in tasks]
    exam = prepare_exam(request.programs, request.measured.batch_size, not request.all)
    each = load_each(ckpt, load, say) if request.all else map(load, [ckpt])
    for generator in each:
        items = list(zip(tasks, known, strict=True))
        report = evaluate_one(generator, request, items, exam, texts)
        del generator  # Never two models in memory.
        if request.as_json:
            yield json.dumps(report)
        reports.append(report)
    if not request.as_json:
        yield from describe_report(reports[0]) if len(reports) == 1 else describe_reports(reports)


def evaluate_one(
    generator: Generator,
    request: Request,
    tasks: Sequence[tuple[Task, Sequence[bool] | None]],
    exam: Exam | None,
    texts: Sequence[Text],
) -> Json:
    """What is found out about one checkpoint, as JSON."""
    assert generator.folder is not None
    report: Json = {"checkpoint": str(generator.folder), "step": step_of(generator.folder)}
    if not request.measured.is_empty:
        report |= measure(generator, request.measured, texts)
    if tasks:
        model, limits = generator.model, Limits(request.measured.batch_size)
        dealer = make_lone_dealer(model.lm_head.weight.device)
        report["tasks"] = [
            score_task(dealer, model, encode(generator, task, request.solved), limits, clean)
            for task, clean in tasks
        ]
    if exam is not None:
        report["programs"] = exam.put_to(generator)
    return report


def encode(generator: Generator, task: Task, solved: Solved) -> EncodedTask:
    """A task in the tokens of a checkpoint: as texts, or as chats."""
    if solved.chat:
        folder = generator.words or generator.folder
        assert folder is not None
        return encode_chats(folder, generator.tokenizer, generator.context, task)
    encoding = Encoding(generator.tokenizer, generator.begin, generator.context)
    return encode_task(encoding, task, solved.delimiter)


def measure(generator: Generator, measured: Measured, texts: Sequence[Text]) -> Json:
    """How well a checkpoint predicts the set or the texts, as JSON."""
    shards = None if measured.shards is None else open_shards(measured.shards)
    row_tokens = None if shards is None else shards.manifest.row_tokens
    length = choose_length(generator, measured.length, row_tokens)
    stride = measured.stride or length
    if row_tokens is not None and stride != length:
        raise ValueError(
            f"{measured.shards}: is packed in rows of {row_tokens:,} tokens, which are its "
            "windows; leave out --stride"
        )
    if stride > length:
        raise ValueError(
            f"--stride is {stride:,}, more than the {length:,} tokens of a window, so that some "
            "tokens would not be predicted; expected at most the length"
        )
    if measured.split not in SPLITS:
        raise ValueError(f"--split is {measured.split!r}; expected one of {', '.join(SPLITS)}")
    if shards is not None:
        what: Json = {
            "shards": str(measured.shards),
            "dataset_id": shards.manifest.dataset_id,
            "split": measured.split,
        }
        prediction = predict_set(generator, shards, measured, length, stride)
    else:
        what = {"text": list(measured.text)}
        prediction = predict_texts(generator, texts, length, stride, measured.batch_size)
    windows = {"length": length, "stride": stride, "windows": prediction.total.loss.num_windows}
    return {**what, **windows, **prediction.describe()}


def choose_length(generator: Generator, wanted: int | None, row_tokens: int | None = None) -> int:
    """How many tokens a window predicts: as asked for, as in the run, or the model's context.

    In a packed set it is a row of `row_tokens`.
    """
    assert generator.folder is not None
    if row_tokens is not None and wanted not in (None, row_tokens):
        raise ValueError(
            f"--length is {wanted:,}; the set is packed in rows of {row_tokens:,} tokens, which "
            "are its windows; leave out --length"
        )
    wanted = row_tokens or wanted
    if wanted is None and (generator.folder / RUN_CONFIG).is_file():
        wanted = read_run_config(generator.folder).data.max_seq_length
    length = wanted or generator.context
    if length > generator.context:
        raise ValueError(
            f"--length is {length:,}; the model's context is {generator.context:,} tokens"
        )
    return length


def predict_set(
    generator: Generator, shards: Shards, measured: Measured, length: int, stride: int
) -> Prediction:
    """How well a checkpoint predicts a split, in whole windows from its first token on."""
    check_tokenizer(
        shards, generator.tokenizer, generator.model.config.num_ids, f"that of {generator.folder}"
    )
    num_tokens = shards.manifest.num_tokens(measured.split)
    total, windows = cut_split(shards.manifest, measured.split, length, stride)
    if not total:
        raise ValueError(
            f"{shards.folder}: {measured.split} has {num_tokens:,} tokens, fewer than a "
            f"window of {length + 1:,}; see --length and --split"
        )
    total = min(total, measured.windows or total)
    windows = islice(windows, total)
    spelling = read_set_spelling(shards.folder, shards.manifest)
    batches = read_set_batches(shards, measured.split, windows, measured.batch_size)
    marks = None
    if generator.folder is not None and (generator.folder / RUN_CONFIG).is_file():
        marks = find_marks(read_run_config(generator.folder).data, shards.manifest)
    with separated(generator.model, marks):
        padding = find_padding(shards.manifest)
        return predict(generator.model, spelling, length, batches, total, padding)


def predict_texts(
    generator: Generator, texts: Sequence[Text], length: int, stride: int, batch_size: int
) -> Prediction:
    """How well a checkpoint predicts texts, each as a document of its own, token by token."""
    documents = []
    for text in texts:
        ids = encode_plainly(generator.tokenizer, text.content)
        if not ids:
            raise ValueError(f"{text.name}: is empty; expected text")
        if text.seen and text.seen.ids.tolist() != ids:
            raise ValueError(
                f"{text.seen.folder}: has other tokens for {text.name} than {generator.folder}; "
                "with --text, --contamination takes a set that was made with the checkpoint's "
                "tokenizer"
            )
        marks = text.seen.marks if text.seen else None
        documents.append((text.name, np.array([generator.begin, *ids], np.int64), marks))
    batches = chain.from_iterable(
        read_text_batches(name, ids, length, stride, batch_size, marks)
        for name, ids, marks in documents
    )
    total = sum(
        sum(1 for _ in cut_windows(len(ids) - 1, length, stride, keeps_rest=True))
        for _, ids, _ in documents
    )
    begin = generator.begin if generator.begin != generator.end_of_text else None
    spelling = read_spelling(generator.tokenizer, generator.end_of_text, begin)
    return predict(generator.model, spelling, length, batches, total)

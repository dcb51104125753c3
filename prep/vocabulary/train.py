"""Trains a byte-level BPE with `tokenizers`, in a process of its own.

The library cannot be interrupted once it has the text, and can take all memory: its process can
be ended, and if the system kills it, this one lives to say so. It makes the same tokenizer from the
same text whatever the number of its threads: of equally frequent pairs, the one of lower ids is
merged first.
"""

import json
import multiprocessing
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from prep.engines.contract import flatten
from prep.engines.local import exit_with_parent
from prep.sources.local import Source
from prep.vocabulary.passages import read_passages
from prep.vocabulary.patterns import make_splitter
from prep.vocabulary.request import TrainRequest
from prep.vocabulary.survey import Choice
from shards.screen.lines import ReadProgress

# A pair that is there only once is no part of a language.
MIN_FREQUENCY = 2


@dataclass(frozen=True)
class TrainJob:
    """What the process that trains is given."""

    sources: tuple[Source, ...]
    request: TrainRequest
    choice: Choice
    train_bytes: int


@dataclass(frozen=True)
class Trained:
    """What it gives back."""

    tokenizer_json: str
    # The text that was held out, by the name of its file.
    held_out: dict[str, list[str]]


def train_apart(job: TrainJob) -> Trained:
    """Train in a process of its own, which ends with this call, whatever happens.

    Raises what training raises; ValueError if the process is killed.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, job), daemon=True)
    process.start()
    theirs.close()
    try:
        result = ours.recv()
    except EOFError:
        process.join()
        raise ValueError(
            f"the process that trains the tokenizer ended with exit code {process.exitcode}"
            + (
                ", most likely for lack of memory; try a smaller --train-bytes"
                if process.exitcode == -signal.SIGKILL
                else "; its output is above"
            )
        ) from None
    finally:
        process.kill()
        process.join()
    if isinstance(result, Exception):
        raise result
    assert isinstance(result, Trained)
    return result


def _work(connection: Connection, job: TrainJob) -> None:
    """The process: train, and send what came of it, or what went wrong."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent decides what Ctrl-C means.
    threading.Thread(target=exit_with_parent, daemon=True).start()
    try:
        connection.send(train(job))
    except Exception as error:
        is_told = isinstance(error, ValueError | OSError)
        connection.send(error if is_told else flatten(error))


def train(job: TrainJob) -> Trained:
    """Train on the chosen passages; ValueError if they have too few merges for --vocab-size."""
    request = job.request
    tokenizer = make_tokenizer(request.pattern)
    num_ids = request.vocab_size - len(request.special_tokens)
    trainer = trainers.BpeTrainer(
        vocab_size=num_ids,
        min_frequency=MIN_FREQUENCY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    held_out: dict[str, list[str]] = {}
    tokenizer.train_from_iterator(_feed(job, held_out), trainer)
    found = tokenizer.get_vocab_size()
    if found < num_ids:
        most = found + len(request.special_tokens)
        raise ValueError(
            f"--vocab-size is {request.vocab_size}; {job.train_bytes:,} bytes of text have pairs "
            f"for {most} ids; give more text, or --vocab-size {most}"
        )
    return Trained(add_special_tokens(tokenizer, request.special_tokens), held_out)


def make_tokenizer(pattern: str) -> Tokenizer:
    """A byte-level BPE that knows no merges yet; any text is made of its 256 bytes."""
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([make_splitter(pattern), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def add_special_tokens(tokenizer: Tokenizer, tokens: Sequence[str]) -> str:
    """The text of the tokenizer.json that also has special tokens, with the last ids."""
    for token in tokens:
        if tokenizer.token_to_id(token) is not None:
            raise ValueError(
                f"the special token {token!r:.60} is spelled like a token of the text; choose "
                "another spelling"
            )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in tokens])
    # Checked that it is JSON that others read as well; the library writes it in the order of ids.
    text: str = tokenizer.to_str(pretty=True)
    assert json.loads(text)["version"] == "1.0"
    return text + "\n"


def _feed(job: TrainJob, held_out: dict[str, list[str]]) -> Iterator[list[str]]:
    """Yield the passages to train on, and collect those that are held out."""
    progress = ReadProgress("bytes of text", job.train_bytes)
    for source in job.sources:
        for passages in read_passages(source, job.request):
            chosen = job.choice.is_trained_on(passages.hashes)
            if texts := passages.choose(job.choice.is_held_out(passages.hashes)):
                held_out.setdefault(source.name, []).extend(texts)
            if chosen.any():
                yield passages.choose(chosen)
                progress.add(int(passages.sizes[chosen].sum()))
    progress.finish()

"""Runs on chats: answers are what is trained on, and no chat sees another in its row."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM

from shards.reader import open_shards
from tests.chats import CHAT_TOKENIZER_JSON, Chat, write_chats
from tests.commands import velocity
from tests.runs import read_metrics
from tests.servers.forked import run_ranks
from tests.texts import make_texts
from tests.tokenized import write_set
from tests.train.test_model_start import STILL, make_words, save_theirs
from tests.train.test_train import assert_equal_bits, checkpoint_tensors
from train.begin.settle import settle_start
from train.chat.labels import open_marking
from train.evaluate import evaluate
from train.loop import train
from train.ranks.distributed import join_ranks
from train.run import Run, build_run, open_checked_sets
from train.settings import load_config
from train.start.ids import fit_sets
from train.step.kernels import use_kernels
from train.take_step import add_gradients

ROW = 24
# All rows of the set in one step, in micro-steps whose numbers of targets differ.
WHOLE = {
    "data__max_seq_length": "auto",
    "training__num_training_steps": 1,
    "training__batch_size_per_device": 2,
}


def make_chats(count: int = 23) -> list[Chat]:
    """Chats of random tokens and lengths, some of two turns, and one with nothing to train on.

    Some have the end token inside, which must not be taken for their end.
    """
    random = np.random.default_rng(7)
    chats = []
    for number in range(count):
        size = int(random.integers(6, ROW - 2))
        ids = [*random.integers(1, 300, size).tolist(), 0]
        if number % 3 == 0:
            ids[2] = 0
        middle = size // 2
        spans = [(2, 4), (middle + 1, size)] if number % 2 else [(middle, size)]
        chats.append(Chat(tuple(ids), () if number == 5 else tuple(spans)))
    return [*chats, Chat((*range(1, ROW), 0), ())]  # A row of its own.


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of them."""
    folder = tmp_path_factory.mktemp("chats") / "chat"
    write_chats(folder, make_chats(), ROW)
    return folder


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that begins all runs here."""
    return save_theirs(tmp_path_factory.mktemp("start") / "theirs", vocab_size=302)


def count_rows(shards: Path) -> int:
    """The rows of a set."""
    return open_shards(shards).manifest.num_tokens("train") // ROW


def expect_loss(model: Any, kept: list[Chat] | None = None) -> Tensor:
    """The mean loss of the answers' tokens of all chats, each read by transformers alone."""
    total, count = torch.zeros(()), 0
    for chat in make_chats() if kept is None else kept:
        ids = torch.tensor(chat.ids)
        targets = torch.full_like(ids, -100)
        for begin, end in chat.spans:
            targets[begin:end] = ids[begin:end]
        logits = model(ids[None]).logits[0, :-1]
        total = total + cross_entropy(logits, targets[1:], reduction="sum")
        count += int((targets[1:] != -100).sum())
    return total / count


@contextmanager
def built(words: list[str]) -> Iterator[Run]:
    """A run before its first step."""
    config = load_config(None, words)
    with join_ranks(config.distributed) as rank:
        sets = open_checked_sets(config)
        config, beginning = settle_start(config, rank, sets.first, print)
        config = fit_sets(config, sets, rank.world_size)
        with use_kernels(config, rank.device):
            run = build_run(config, rank, sets, print, beginning)
            try:
                yield run
            finally:
                run.saver.close()
                run.batches.close()


def test_loss_and_gradients_are_those_of_chats_one_by_one(
    chats: Path, start: Path, tmp_path: Path
) -> None:
    """Of all rows in one step; micro-steps weigh by their targets, and one may have few or none."""
    steps = count_rows(chats)
    whole = WHOLE | {
        "training__gradient_accumulation_steps": steps,
        "training__batch_size_per_device": 1,
    }
    theirs = LlamaForCausalLM.from_pretrained(start)
    expected = expect_loss(theirs)
    expected.backward()
    with built(make_words(chats, tmp_path, start, **whole)) as run:
        found = add_gradients(run) / steps
        counts = run.batches.count_targets()
        assert sum(counts) == sum(b - a for chat in make_chats() for a, b in chat.spans)
        assert min(counts) == 0 < max(counts)
        torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=0)
        gradients = {name: weight.grad for name, weight in theirs.named_parameters()}
        for name, weight in run.model.named_parameters():
            assert weight.grad is not None
            torch.testing.assert_close(weight.grad, gradients[name], rtol=1e-4, atol=1e-7)
        stream = open_shards(chats).stream("train")
        marking = open_marking(open_shards(chats), "train")
        options: list[Any] = [2, ROW, run.rank, run.autocast, lambda: False, 0, marking]
        [validated] = evaluate(run.model, stream, count_rows(chats), *options)
        assert validated == pytest.approx(float(expected.detach()), rel=1e-5)


def test_packed_rows_are_read_as_transformers_reads_them(
    chats: Path, start: Path, tmp_path: Path
) -> None:
    """Positions begin anew with each chat, and transformers keeps them apart by that."""
    theirs = LlamaForCausalLM.from_pretrained(start, attn_implementation="sdpa")
    with built(make_words(chats, tmp_path, start, **WHOLE)) as run:
        batch = next(run.batches.next_step())
        assert batch.firsts is not None
        firsts = batch.firsts.clone()
        firsts[:, 0] = True
        places = torch.arange(ROW).expand(firsts.shape)
        positions = places - (places * firsts).cummax(1).values
        for row, place in zip(batch.tokens, positions, strict=True):
            ours = run.model(row[None], firsts=place[None] == 0)
            other = theirs(row[None], position_ids=place[None], use_cache=False).logits
            torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-5)


def test_two_ranks_and_a_kill_change_nothing(chats: Path, start: Path, tmp_path: Path) -> None:
    """Two ranks as one; and a run that goes on as one that went through, bit for bit."""
    chat = {"data__max_seq_length": "auto", "training__batch_size_per_device": 1}
    alone = chat | {"training__gradient_accumulation_steps": 4, "training__cycle_steps": 6}
    train(load_config(None, make_words(chats, tmp_path / "one", start, **alone)))
    pair = alone | {"training__gradient_accumulation_steps": 2}
    run_ranks(2, make_words(chats, tmp_path / "two", start, **pair))
    for metric in ("loss", "grad_norm", "trained_share"):
        one, two = (read_metrics(tmp_path / name, metric) for name in ("one", "two"))
        assert two == pytest.approx(one, rel=1e-4)
    part = alone | {"training__num_training_steps": 3}
    train(load_config(None, make_words(chats, tmp_path / "part", start, **part)))
    train(load_config(None, make_words(chats, tmp_path / "part", start, **alone)))
    assert read_metrics(tmp_path / "part") == read_metrics(tmp_path / "one")
    last = (checkpoint_tensors(tmp_path / name, 8) for name in ("part", "one"))
    assert_equal_bits(*last)


def test_evaluations_count_what_is_trained_on(
    chats: Path, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`velocity eval` and a run's own evaluation give the loss of the answers."""
    words = WHOLE | STILL | {"training__eval_sets": f"again={chats}", "training__eval_steps": 1}
    words |= {"training__eval_windows": 100}
    train(load_config(None, make_words(chats, tmp_path, start, **words)))
    expected = float(expect_loss(LlamaForCausalLM.from_pretrained(start)).detach())
    assert read_metrics(tmp_path, "sets/again/loss")[1] == pytest.approx(expected, rel=1e-4)
    ckpt = tmp_path / "checkpoints"
    words = ("--shards", chats, "--split", "train", "--json")
    code, out, errors = velocity("eval", "--ckpt", ckpt, *words)
    assert code == 0, errors
    assert json.loads(out)["loss"] == pytest.approx(expected, rel=1e-4)


def test_chats_and_text_may_be_mixed(chats: Path, start: Path, tmp_path: Path) -> None:
    """Packed text of the same tokenizer counts as it does alone, kept apart by its end tokens."""
    texts = tmp_path / "texts"
    write_set(texts, CHAT_TOKENIZER_JSON, make_texts(40), "<|endoftext|>", row_tokens=ROW)
    alone = {"data__max_seq_length": "auto", "data__attention": "document", **STILL}
    train(load_config(None, make_words(texts, tmp_path / "alone", start, **alone)))
    mixed = make_words(chats, tmp_path / "mixed", start, data__max_seq_length="auto", **STILL)
    mixed = [word for word in mixed if not word.startswith("data.shards")]
    mixed.append(f"data.mixture={{{texts}: 1, {chats}: 1}}")
    with built(mixed) as run:
        places = run.order.starts(np.arange(8))
        owners = places >= run.order.sets.sources[0].order.num_tokens
        assert 0 < owners.sum() < 8
        rows = run.batches.stream.windows(places, ROW)
        assert run.batches.marking is not None
        labels = run.batches.marking.read(places, rows)
        both = [open_marking(open_shards(folder), "train") for folder in (texts, chats)]
        sizes = [0, run.order.sets.sources[0].order.num_tokens]
        for place, row, label, owner in zip(places, rows, labels, owners.astype(int), strict=True):
            expected = both[owner].read(np.array([place - sizes[owner]]), row[None])
            assert (label == expected[0]).all()
    with built(make_words(texts, tmp_path / "plain", start, **alone)) as run:
        batch = next(run.batches.next_step())
        rows = batch.tokens.numpy()
        found = both[0].read(np.zeros(len(rows), np.int64), rows)
        counted = torch.from_numpy((np.roll(found, -1, 1) & 1) != 0)
        counted[:, -1] = False
        assert torch.equal(counted, batch.targets != -100)
        apart = run.model(batch.tokens, firsts=torch.from_numpy((found & 2) != 0))
        assert torch.equal(apart, run.model(batch.tokens))


def test_epochs_are_counted_exactly(chats: Path, start: Path, tmp_path: Path) -> None:
    """As many steps as read the set so often; one more sample would be one more step."""
    rows = count_rows(chats)
    for epochs, samples, expected in (
        (1, 1, rows),
        (2, 3, -(-2 * rows // 3)),
        (0.5, rows, 1),
        (1, rows, 1),
        (1, rows - 1, 2),
    ):
        words = make_words(
            chats,
            tmp_path,
            start,
            data__max_seq_length="auto",
            training__batch_size_per_device=samples,
            training__gradient_accumulation_steps=1,
            training__warmup_steps=2,
        )
        words = [word for word in words if "num_training_steps" not in word]
        with built([*words, f"training.epochs={epochs}"]) as run:
            assert run.config.training.num_training_steps == expected
            assert run.config.training.warmup_steps == min(2, expected // 10)
            assert run.config.data.max_seq_length == ROW


def test_what_cannot_be_is_refused(
    chats: Path, tiny_shards: Path, start: Path, tmp_path: Path
) -> None:
    """In one line each."""
    folder = save_theirs(tmp_path / "tiny")
    for words, message in (
        (
            make_words(tiny_shards, tmp_path / "a", folder, data__max_seq_length="auto"),
            f"data.max_seq_length is auto, but {tiny_shards} is not packed",
        ),
        (
            make_words(chats, tmp_path / "b", start, data__max_seq_length=16),
            "packed in rows of 24 tokens, and data.max_seq_length is 16; set data.max_seq_length=2",
        ),
        (
            make_words(chats, tmp_path / "c", start, training__epochs=1),
            "training.epochs and training.num_training_steps both say how far the run goes",
        ),
    ):
        with pytest.raises(ValueError, match=message.replace(".", r"\.")):
            train(load_config(None, words))

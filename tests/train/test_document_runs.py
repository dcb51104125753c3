"""Runs with data.attention=document: documents as the set has them, and all that a run promises."""

import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy

from model.checkpoints.folder import load_model
from model.documents import find_firsts
from model.transformer import Transformer
from shards.documents import Sidecars
from shards.edit.remove import Wanted
from shards.reader import open_shards
from tests.runs import make_overrides, read_metrics, run_small
from tests.servers.forked import run_ranks
from tests.texts import make_texts
from tests.tiny import CONFIG, TOKENIZER_JSON
from tests.tokenized import write_set
from tests.train.test_train import assert_equal_bits, checkpoint_tensors
from train.config import DataConfig
from train.inspect.model_folder import inspect_model
from train.start.documents import separate_documents
from train.tracing.takedown import Takedown, take_down

LENGTH = 32
APART = {"data__attention": "document", "data__max_seq_length": LENGTH}
FEW = {"training__num_training_steps": 4}
METRICS = ("loss", "grad_norm", "validation_loss")


def make_set(folder: Path, begin: str | None = None) -> Path:
    """A set of short documents, of which one was removed with its places kept."""
    tokenizer = Tokenizer.from_str(TOKENIZER_JSON)
    if begin is not None:
        tokenizer.add_special_tokens([begin])
    write_set(folder, tokenizer.to_str(), make_texts(300, mean_words=5), "<|endoftext|>", begin)
    wanted = Wanted(frozenset(["https://example.com/20"]))
    list(take_down(Takedown(folder, wanted, True), say=lambda line: None))
    return folder


@pytest.fixture(scope="module")
def short_texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("short") / "shards")


@pytest.mark.parametrize("begin", [None, "<|begin|>"])
def test_documents_are_those_of_the_sidecar(tmp_path: Path, begin: str | None) -> None:
    """Each with the token that begins it: its own, or the end token before it."""
    shards = open_shards(make_set(tmp_path / "shards", begin))
    with torch.device("meta"):
        model = Transformer(CONFIG)
    separate_documents(model, DataConfig(), shards.manifest)
    assert model.model.separation.marks is None
    separate_documents(model, DataConfig(attention="document"), shards.manifest)
    marks = model.model.separation.marks
    assert marks is not None
    stream = shards.stream("train")
    documents = Sidecars(shards, "train").between(0, stream.num_tokens)
    assert sum(document.is_blank and document.num_tokens > 3 for document in documents) == 1
    begins = np.zeros(stream.num_tokens + 1, bool)
    begins[[document.start - (begin is None) for document in documents[1:]]] = True
    places = np.arange(0, stream.num_tokens - LENGTH, 7)
    windows = torch.from_numpy(stream.windows(places, LENGTH).astype(np.int64))
    found = find_firsts(windows, marks)
    assert found[:, 0].all()
    expected = torch.from_numpy(np.stack([begins[place : place + LENGTH] for place in places]))
    # At a window's ends, what is left of a run of end tokens may be cut off as one more document.
    assert torch.equal(found[:, 2:-1], expected[:, 2:-1])
    assert expected.sum() > len(places)


def lose_by_hand(model: Transformer, window: Tensor, end: int) -> Tensor:
    """A window's mean loss, each of its documents computed alone from the end token before it."""
    firsts = [0, *(place for place in range(1, LENGTH) if window[place] == end), LENGTH]
    logits = [model(window[None, first:stop])[0] for first, stop in pairwise(firsts)]
    return cross_entropy(torch.cat(logits), window[1:])


def test_the_validation_loss_is_that_of_documents_alone(tmp_path: Path, short_texts: Path) -> None:
    """By a fresh model, from the run's own checkpoint."""
    outcome = run_small(short_texts, tmp_path, training__learning_rate=0.05, **APART)
    shards, folder = open_shards(short_texts), tmp_path / "checkpoints" / "checkpoint-8"
    model = load_model(folder, torch.device("cpu"), torch.float32)
    places = np.arange(8) * LENGTH
    windows = shards.stream("validation").windows(places, LENGTH + 1).astype(np.int64)
    assert (windows[:, 1:-1] == 0).any()
    with torch.no_grad():
        losses = [lose_by_hand(model, window, 0) for window in torch.from_numpy(windows)]
    assert outcome.validation_loss == pytest.approx(float(torch.stack(losses).mean()), abs=1e-5)


def test_a_run_goes_on_bit_for_bit(
    short_texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, object] = {**APART, "training__save_steps": 5}
    run_small(short_texts, tmp_path / "straight", **settings)
    assert "attention    flash, inside documents, one after another\n" in capsys.readouterr().err
    run_small(short_texts, tmp_path / "resumed", **settings)
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "checkpoint-8")
    run_small(short_texts, tmp_path / "resumed", **settings)
    straight, resumed = (checkpoint_tensors(tmp_path / n, 8) for n in ("straight", "resumed"))
    assert_equal_bits(straight, resumed)
    facts = inspect_model(tmp_path / "resumed" / "checkpoints" / "checkpoint-8").facts
    assert facts["attention"] == "was trained inside documents (data.attention=document)"
    for metric in METRICS:
        assert read_metrics(tmp_path / "straight", metric) == read_metrics(
            tmp_path / "resumed", metric
        )


def test_what_a_run_does_otherwise_than_before_is_told(
    short_texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its windows stay in order, but tokens see less of them."""
    settings: dict[str, object] = {"data__max_seq_length": LENGTH}
    for name in ("window", "document"):
        run_small(short_texts, tmp_path / name, training__num_training_steps=4, **settings)
    capsys.readouterr()
    run_small(short_texts, tmp_path / "window", **settings)
    assert "data.attention" not in capsys.readouterr().err
    run_small(short_texts, tmp_path / "document", **settings | APART)
    assert "data.attention was window, is now document\n" in capsys.readouterr().err
    window, document = (read_metrics(tmp_path / name) for name in ("window", "document"))
    assert window != document
    assert [window[step] == document[step] for step in (1, 2, 3, 4)] == [True] * 4
    assert window == pytest.approx(document, abs=0.2)


def test_losses_are_the_same_however_samples_are_dealt(short_texts: Path, tmp_path: Path) -> None:
    """In other micro-batches, on two ranks, and on two that have a part of the model each."""
    alone = {**APART, "training__gradient_accumulation_steps": 4, **FEW}
    run_small(short_texts, tmp_path / "one", **alone)
    wide = {"training__batch_size_per_device": 8, "training__gradient_accumulation_steps": 1}
    run_small(short_texts, tmp_path / "wide", **APART | FEW | wide)
    run_ranks(2, make_overrides(short_texts, tmp_path / "ddp", **APART, **FEW))
    fsdp = {"distributed__strategy": "fsdp"}
    run_ranks(2, make_overrides(short_texts, tmp_path / "fsdp", **APART, **FEW, **fsdp))
    for metric in METRICS:
        expected = read_metrics(tmp_path / "one", metric)
        for name in ("wide", "ddp", "fsdp"):
            found = read_metrics(tmp_path / name, metric)
            assert found == pytest.approx(expected, abs=1e-5 if metric != "grad_norm" else 1e-3)

"""Runs on packed sets: rows as windows, no padding trained on, and all that a run promises."""

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from model.checkpoints.folder import load_model
from model.logits.differentiate import compile_differentiate
from model.loss import IGNORED, chunked_cross_entropy
from model.transformer import Transformer
from shards.documents import Document, Sidecars
from shards.edit.remove import Wanted, find_wanted, remove_documents
from shards.order import PackedOrder, make_order
from shards.reader import Shards, open_shards
from tests.commands import velocity
from tests.runs import make_overrides, read_metrics, run_small
from tests.servers.forked import run_ranks
from tests.texts import make_texts
from tests.tiny import TOKENIZER_JSON
from tests.tokenized import encode, load_plain, write_set
from tests.train.test_train import assert_equal_bits, checkpoint_tensors
from train.targets import count_targets, split_windows
from train.tracing.runs import trace_run

END, ROW = 0, 32
SETTINGS: dict[str, object] = {"data__max_seq_length": ROW}
FEW = {"training__num_training_steps": 4, "training__save_steps": 1}
METRICS = ("loss", "grad_norm", "validation_loss")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set with much padding, and a document that was removed with its places kept."""
    folder = tmp_path_factory.mktemp("packed") / "shards"
    # Mostly of more than half a row, so that many rows end in padding.
    tokenizer = load_plain(TOKENIZER_JSON)
    sizes = {text: len(encode(tokenizer, text)) for text in make_texts(400, mean_words=5)}
    texts = [text for text, size in sizes.items() if size > 14]
    write_set(folder, TOKENIZER_JSON, texts, "<|endoftext|>", row_tokens=ROW)
    shards = open_shards(folder)
    wanted = Wanted(frozenset(["https://example.com/20"]))
    remove_documents(shards, find_wanted(shards, wanted), keeps_places=True)
    return folder


def find_targets(shards: Shards, split: str, start: int) -> list[int]:
    """The targets of the row at `start`, one by one, by what the sidecar says of each token."""
    ids = shards.stream(split).read(start, ROW).tolist()
    state = {}
    for entry in Sidecars(shards, split).covering(start, start + ROW):
        # The first end token of padding, or of a removed document, is one after a document's end.
        for place in range(entry.start, entry.stop):
            is_free = entry.is_padding or (entry.is_blank and place > entry.start)
            state[place] = is_free or (entry.is_blank and ids[place - start - 1] == END)
    following = [*ids[1:], IGNORED]
    places = range(start + 1, start + ROW + 1)
    return [
        IGNORED if place == start + ROW or state[place] else target
        for place, target in zip(places, following, strict=True)
    ]


def read_rows(shards: Shards, split: str, starts: list[int]) -> tuple[Tensor, Tensor]:
    """Rows as tokens and targets: (B, T) each."""
    rows = shards.stream(split).windows(np.array(starts), ROW).astype(np.int64)
    targets = [find_targets(shards, split, start) for start in starts]
    return torch.from_numpy(rows), torch.tensor(targets)


def test_targets_are_those_of_the_sidecar(packed: Path) -> None:
    shards = open_shards(packed)
    for split in ("train", "validation"):
        starts = [*range(0, shards.manifest.num_tokens(split), ROW)]
        rows, expected = read_rows(shards, split, starts)
        tokens, targets, _ = split_windows(rows, END)
        assert torch.equal(tokens, rows)
        assert torch.equal(targets, expected)
        assert count_targets(rows, END) == int((expected != IGNORED).sum())
    # Rows are padded, and not only padding is ignored.
    assert int((targets[:, :-1] == IGNORED).sum()) > 20


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("is_compiled", [False, True])
def test_ignored_targets_count_for_nothing(z_loss: float, is_compiled: bool) -> None:
    """The loss and gradients of the other tokens alone, whatever chunks they fall into."""
    torch.manual_seed(0)
    hidden = torch.randn(300, 16, requires_grad=True)
    weight = torch.randn(50, 16, requires_grad=True)
    targets = torch.randint(50, (300,))
    targets[torch.rand(300) < 0.4] = IGNORED
    targets[128:256] = IGNORED  # A whole chunk.
    counted = targets != IGNORED
    logits = hidden[counted] @ weight.T
    expected = cross_entropy(logits, targets[counted])
    z = z_loss * logits.logsumexp(-1).square().mean()
    (expected + z).backward()  # type: ignore[no-untyped-call]
    wanted = [hidden.grad, weight.grad]
    hidden.grad = weight.grad = None
    options: dict[str, Any] = {"chunk_tokens": 128, "z_loss": z_loss, "has_ignored": True}
    if is_compiled:
        options["differentiate"] = compile_differentiate("eager")
    loss = chunked_cross_entropy(hidden, weight, targets, 1.0, **options)
    loss.sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(loss.reshape(-1)[0], expected)
    torch.testing.assert_close([hidden.grad, weight.grad], wanted)
    nothing = torch.full((300,), IGNORED)
    loss = chunked_cross_entropy(hidden, weight, nothing, 1.0, **options)
    assert loss.tolist() == ([0.0, 0.0] if z_loss else 0.0)


def lose_by_hand(model: Transformer, rows: Tensor, targets: Tensor) -> float:
    """The mean loss over all targets that count."""
    with torch.no_grad():
        logits = model(rows).flatten(0, 1)
    return float(cross_entropy(logits, targets.flatten(), ignore_index=IGNORED))


def test_losses_are_those_of_documents_without_padding(packed: Path, tmp_path: Path) -> None:
    """Of a step, over micro-steps of unlike padding, and of the validation split."""
    sets = {"training__eval_sets": f"same={packed}"}
    run_small(packed, tmp_path, **SETTINGS, **FEW, **sets, training__save_total_limit=9)
    shards = open_shards(packed)
    order = make_order(shards.manifest, ROW, 42)
    assert isinstance(order, PackedOrder)
    for step in (1, 2, 3):
        folder = tmp_path / "checkpoints" / f"checkpoint-{step}"
        model = load_model(folder, torch.device("cpu"), torch.float32)
        starts = order.starts(np.arange(4 * step, 4 * step + 4)).tolist()
        rows, targets = read_rows(shards, "train", starts)
        counts = (targets != IGNORED).sum(1)
        assert len(set(counts.tolist())) > 1
        expected = lose_by_hand(model, rows, targets)
        assert read_metrics(tmp_path)[step + 1] == pytest.approx(expected, abs=1e-5)
    model = load_model(tmp_path / "checkpoints/checkpoint-4", torch.device("cpu"), torch.float32)
    rows, targets = read_rows(shards, "validation", [ROW * place for place in range(8)])
    expected = lose_by_hand(model, rows, targets)
    assert read_metrics(tmp_path, "validation_loss")[4] == pytest.approx(expected, abs=1e-5)
    assert read_metrics(tmp_path, "sets/same/loss")[4] == pytest.approx(expected, abs=1e-5)
    check_eval(packed, tmp_path, model)


def check_eval(packed: Path, tmp_path: Path, model: Transformer) -> None:
    """`velocity eval` says the same of the split, and predicts no padding."""
    shards = open_shards(packed)
    starts = [*range(0, shards.manifest.num_tokens("validation"), ROW)]
    rows, targets = read_rows(shards, "validation", starts)
    run = ("eval", "--ckpt", tmp_path / "checkpoints", "--shards", packed)
    code, output, errors = velocity(*run, "--json")
    assert code == 0, errors
    found = json.loads(output)
    assert (found["length"], found["windows"]) == (ROW, len(starts))
    assert found["tokens"] == int((targets != IGNORED).sum())
    assert found["loss"] == pytest.approx(lose_by_hand(model, rows, targets), abs=1e-5)
    assert [entry["source"] for entry in found["by_source"]] == ["texts"]
    for option in ("--length", "--stride"):
        code, _, errors = velocity(*run, option, 16)
        assert code == 1
        assert f"packed in rows of {ROW} tokens, which are its windows; leave out" in errors


def test_documents_may_be_kept_apart(packed: Path, tmp_path: Path) -> None:
    """Then the loss is that of each document alone, from the end token before it."""
    run_small(packed, tmp_path, **SETTINGS, **FEW, data__attention="document")
    model = load_model(tmp_path / "checkpoints/checkpoint-4", torch.device("cpu"), torch.float32)
    shards = open_shards(packed)
    rows, targets = read_rows(shards, "validation", [ROW * place for place in range(8)])
    logits = []
    for row in rows:
        firsts = [0, *(place for place in range(1, ROW) if row[place] == END), ROW]
        with torch.no_grad():
            logits += [model(row[None, first:stop])[0] for first, stop in pairwise(firsts)]
    expected = cross_entropy(torch.cat(logits), targets.flatten(), ignore_index=IGNORED)
    found = read_metrics(tmp_path, "validation_loss")[4]
    assert found == pytest.approx(float(expected), abs=1e-5)


def test_a_run_goes_on_bit_for_bit_and_is_traced(packed: Path, tmp_path: Path) -> None:
    settings: dict[str, object] = {**SETTINGS, "training__save_steps": 5}
    run_small(packed, tmp_path / "straight", **settings)
    run_small(packed, tmp_path / "resumed", **settings)
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "checkpoint-8")
    run_small(packed, tmp_path / "resumed", **settings)
    straight, resumed = (checkpoint_tensors(tmp_path / n, 8) for n in ("straight", "resumed"))
    assert_equal_bits(straight, resumed)
    for metric in METRICS:
        assert read_metrics(tmp_path / "straight", metric) == read_metrics(
            tmp_path / "resumed", metric
        )
    shards = open_shards(packed)
    tracer = trace_run(shards, tmp_path / "straight" / "checkpoints")
    documents = Sidecars(shards, "train").between(0, shards.manifest.num_tokens("train"))
    seen: dict[Document, set[int]] = {document: set() for document in documents}
    for step in range(1, 9):
        for _, [(start, stop)], found in tracer.documents_of_step(step):
            assert (start % ROW, stop - start) == (0, ROW)
            assert not any(document.is_padding for document in found)
            for document in found:
                assert document.start < stop
                assert document.stop > start
                seen[document].add(step)
    for document in documents:
        assert tracer.steps_of_document(document) == sorted(seen[document])
    # The run reads a row twice only in its second epoch.
    assert tracer.order.windows_per_epoch == shards.manifest.num_tokens("train") // ROW


def test_losses_are_the_same_however_samples_are_dealt(packed: Path, tmp_path: Path) -> None:
    """In other micro-batches, also of unlike sizes, and on two ranks."""
    seven: dict[str, object] = {"training__global_batch_tokens": 7 * ROW}
    dealt = {
        "one": {"training__batch_size_per_device": 7, "training__gradient_accumulation_steps": 1},
        "three": {"training__batch_size_per_device": 3, "training__gradient_accumulation_steps": 3},
    }
    common = SETTINGS | FEW | seven
    for name, options in dealt.items():
        run_small(packed, tmp_path / name, **common | options)
    auto: dict[str, object] = {"training__gradient_accumulation_steps": "auto"}
    run_ranks(2, make_overrides(packed, tmp_path / "two", **common | dealt["three"] | auto))
    losses = {name: read_metrics(tmp_path / name) for name in (*dealt, "two")}
    norms = {name: read_metrics(tmp_path / name, "grad_norm") for name in (*dealt, "two")}
    for name in ("three", "two"):
        assert losses[name] == pytest.approx(losses["one"], abs=1e-5)
        assert norms[name] == pytest.approx(norms["one"], rel=1e-4)
        left, right = (checkpoint_tensors(tmp_path / n, 4) for n in ("one", name))
        for key in left:
            torch.testing.assert_close(right[key], left[key], rtol=1e-4, atol=1e-4)


def test_windows_other_than_rows_are_refused(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="packed in rows of 32 tokens, and data"):
        run_small(packed, tmp_path)
    assert not (tmp_path / "checkpoints").exists()
    with pytest.raises(ValueError, match=r"is packed, .* so data\.where cannot choose among"):
        run_small(packed, tmp_path, **SETTINGS, data__where="url is not None")
    code, _, errors = velocity("plan", "--shards", packed, "data.max_seq_length=16")
    assert code == 1
    assert "set data.max_seq_length=32, or pack it again with --pack-tokens 16" in errors


def test_the_samples_of_a_bad_step_are_told(packed: Path, tmp_path: Path) -> None:
    """Each with the mean over its own targets; a skipped step leaves the weights as they were."""
    spikes: dict[str, object] = {
        "training__on_bad_step": "skip",
        "training__spike_window": 2,
        "training__spike_threshold": 1e-3,
        "training__learning_rate": 1.0,
    }
    run_small(packed, tmp_path, **SETTINGS, **FEW, **spikes)
    lines = (tmp_path / "logs" / "bad-steps.jsonl").read_text().splitlines()
    record = json.loads(lines[-1])
    folder = tmp_path / "checkpoints" / f"checkpoint-{record['step']}"
    model = load_model(folder, torch.device("cpu"), torch.float32)
    assert len(record["samples"]) == 4
    for sample in record["samples"]:
        rows, targets = read_rows(open_shards(packed), "train", [sample["start"]])
        assert sample["loss"] == pytest.approx(lose_by_hand(model, rows, targets), rel=1e-4)

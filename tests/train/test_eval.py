"""`velocity eval`: what it says of texts and sets is what transformers says of the same windows."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

import model.logits.chunks
from model.checkpoints.folder import save_model
from model.checkpoints.seal import seal
from shards.documents import Sidecars
from shards.format import Int64
from shards.index.build import build_index
from shards.reader import open_shards
from shards.tokenizer import encode_plainly, parse_tokenizer, read_spelling
from tests.commands import velocity
from tests.runs import run_small
from tests.texts import make_texts
from tests.tiny import CONFIG, TOKENIZER_JSON, make_model, make_tokenizer
from tests.tokenized import split_of, write_set
from tests.vocabularies import build_sentencepiece
from train.evaluation.estimates import Ratio
from train.evaluation.perplexity import measure_text

END = 0
LENGTH = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, beside a set of three sources."""
    folder = tmp_path_factory.mktemp("eval")
    save_model(folder / "model", make_model(), TOKENIZER_JSON)
    seal(folder / "model")
    texts = make_texts(80, mean_words=15)
    sources = ("web.parquet", "books.parquet", "code.jsonl")
    write_set(folder / "set", TOKENIZER_JSON, texts, "<|endoftext|>", sources=sources)
    return folder


@pytest.fixture(scope="module")
def llama(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder / "model")


def run_eval(*arguments: object) -> list[dict[str, Any]]:
    """The lines of JSON that `velocity eval` prints."""
    code, output, errors = velocity("eval", *arguments, "--json")
    assert code == 0, errors
    return [json.loads(line) for line in output.splitlines()]


@torch.no_grad()
def predict_plainly(llama: Any, tokens: Int64) -> Int64:
    """transformers' loss of every token but the first of a window."""
    rows = torch.from_numpy(tokens)[None]
    losses = cross_entropy(llama(rows[:, :-1]).logits[0].float(), rows[0, 1:], reduction="none")
    return np.asarray(losses.double())


def count_bytes(tokens: Int64) -> Int64:
    """The bytes of each token: byte-level BPE writes one as one character."""
    tokenizer = make_tokenizer()
    sizes = [0 if t == END else len(tokenizer.id_to_token(t)) for t in tokens.tolist()]
    return np.array(sizes)


def test_a_split_is_predicted_as_by_transformers(folder: Path, llama: Any) -> None:
    shards = open_shards(folder / "set")
    stream = shards.stream("train")
    ids = stream.read(0, stream.num_tokens).astype(np.int64)
    count = (len(ids) - 1) // LENGTH
    windows = np.stack([ids[k * LENGTH : (k + 1) * LENGTH + 1] for k in range(count)])
    losses = np.stack([predict_plainly(llama, window) for window in windows])
    sizes = np.stack([count_bytes(window[1:]) for window in windows])

    options = ("--shards", folder / "set", "--split", "train", "--length", LENGTH)
    [found] = run_eval("--ckpt", folder / "model", *options, "--batch-size", 7)
    assert (found["windows"], found["tokens"]) == (count, count * LENGTH)
    assert found["loss"] == pytest.approx(losses.mean(), abs=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(losses.mean()), rel=1e-5)
    spread = losses.mean(1).std(ddof=1) / math.sqrt(count)
    assert found["loss_stderr"] == pytest.approx(spread, rel=1e-4)
    assert found["bytes"] == sizes.sum()
    text_nats = losses[windows[:, 1:] != END].sum()
    bits = text_nats / math.log(2) / sizes.sum()
    assert found["bits_per_byte"] == pytest.approx(bits, rel=1e-5)

    # Position 3 in a window is its fourth prediction; the ranges hold all, once.
    edges = [part["first_position"] for part in found["by_position"]]
    assert edges == [0, 1, 3, 6, 12]
    for part, stop in zip(found["by_position"], [*edges[1:], LENGTH], strict=True):
        expected = losses[:, part["first_position"] : stop]
        assert part["loss"] == pytest.approx(expected.mean(), abs=1e-5)
        assert part["tokens"] == expected.size

    origins = np.array(
        [
            document.source_file
            for document in Sidecars(shards, "train").between(0, len(ids))
            for _ in range(document.num_tokens)
        ]
    )[1 : count * LENGTH + 1].reshape(count, LENGTH)
    assert {part["source"] for part in found["by_source"]} == set(np.unique(origins))
    assert len(found["by_source"]) == 3
    for part in found["by_source"]:
        is_own = origins == part["source"]
        assert part["tokens"] == is_own.sum()
        assert part["loss"] == pytest.approx(losses[is_own].mean(), abs=1e-5)
        assert part["bytes"] == sizes[is_own].sum()


@pytest.mark.parametrize("attention", ["window", "document"])
def test_it_is_the_loss_that_training_reports(attention: str, tmp_path: Path) -> None:
    shards = tmp_path / "set"
    write_set(shards, TOKENIZER_JSON, make_texts(200, mean_words=4), "<|endoftext|>")
    steps = {"training__num_training_steps": 4, "training__eval_steps": 4}
    # Large weights, so that it shows what attention looks at.
    steps |= {"model__initializer_range": 0.3, "training__save_steps": 2}
    reported = run_small(shards, tmp_path, data__attention=attention, **steps).validation_loss
    options = ("--shards", shards, "--windows", 8)
    found = run_eval("--ckpt", tmp_path / "checkpoints", *options, "--all")
    assert [report["step"] for report in found] == [2, 4]
    assert found[-1]["length"] == 16  # As in the run, not the model's context of 32.
    assert found[-1]["loss"] == pytest.approx(reported, abs=1e-5)
    code, output, errors = velocity("eval", "--ckpt", tmp_path / "checkpoints", *options, "--all")
    assert code == 0, errors
    assert f"{found[-1]['loss']:.4f}" in output.splitlines()[-1]
    # Standard input, which can be read but once, is predicted by all of them.
    words = ("eval", "--ckpt", tmp_path / "checkpoints", "--all", "--text", "-", "--json")
    code, output, errors = velocity(*words, stdin=make_texts(1)[0])
    assert code == 0, errors
    assert [json.loads(line)["step"] for line in output.splitlines()] == [2, 4]


@pytest.mark.parametrize("stride", [None, 5])
def test_texts_are_predicted_once_each(
    folder: Path, llama: Any, tmp_path: Path, stride: int | None
) -> None:
    texts = [*make_texts(6, mean_words=40)[3:], "é"]
    paths = [tmp_path / f"{number}.txt" for number in range(len(texts))]
    options: list[object] = ["--length", LENGTH, "--batch-size", 3]
    losses = []
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text, encoding="utf-8")
        options += ["--text", path]
        ids = np.array([END, *encode_plainly(make_tokenizer(), text)])
        # Each token after as many as its window has; windows begin a stride after each other.
        done = 0
        for start in range(0, len(ids), stride or LENGTH):
            if done < len(ids) - 1:
                window = predict_plainly(llama, ids[start : start + LENGTH + 1])
                losses += window[done - start :].tolist()
                done = start + len(window)
    if stride:
        options += ["--stride", stride]
    [found] = run_eval("--ckpt", folder / "model", *options)
    assert found["tokens"] == len(losses)
    assert found["loss"] == pytest.approx(np.mean(losses), abs=1e-5)
    num_bytes = sum(len(text.encode()) for text in texts)
    assert found["bytes"] == num_bytes
    bits = sum(losses) / math.log(2) / num_bytes
    assert found["bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    by_source = {part["source"]: part["bytes"] for part in found["by_source"]}
    assert by_source == {str(p): len(t.encode()) for p, t in zip(paths, texts, strict=True)}


def test_tokens_of_a_text_that_are_in_the_training_set(
    folder: Path, llama: Any, tmp_path: Path
) -> None:
    """Those in a row of so many that the train split holds; what is left has a loss of its own."""
    texts = make_texts(40, seed=5, mean_words=40)
    write_set(tmp_path / "set", TOKENIZER_JSON, texts, "<|endoftext|>", shard_tokens=1500)
    build_index(tmp_path / "set", lambda line: None)
    held = next(text for n, text in enumerate(texts) if split_of(n) == "validation")
    words = [text.split(" ") for text in texts if len(text.split(" ")) > 30]
    mine = make_texts(3, seed=9, mean_words=30)
    # The rows of the parts that were copied are not longer than the parts.
    text = f"{mine[0]} {' '.join(words[0][3:20])}\n{mine[1]} {' '.join(words[3][5:30])}; {held}"
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.txt").write_text(mine[2])
    size = 30
    stream = open_shards(tmp_path / "set").stream("train")
    tokens = stream.read(0, stream.num_tokens).tolist()
    rows = {tuple(tokens[place : place + size]) for place in range(len(tokens) - size + 1)}
    losses, is_seen = [], []
    for part in (text, mine[2]):
        ids = encode_plainly(make_tokenizer(), part)
        marks = np.zeros(len(ids), np.bool_)
        for place in range(len(ids) - size + 1):
            if tuple(ids[place : place + size]) in rows:
                marks[place : place + size] = True
        is_seen.append(marks)
        for start in range(0, len(ids), LENGTH):
            window = np.array([END, *ids][start : start + LENGTH + 1])
            losses.append(predict_plainly(llama, window))
    seen, nats = np.concatenate(is_seen), np.concatenate(losses)
    assert 40 < seen.sum() < len(seen) - 40
    assert not is_seen[1].any()
    options = ["--text", tmp_path / "a.txt", "--text", tmp_path / "b.txt", "--length", LENGTH]
    options += ["--contamination", tmp_path / "set", "--ngram"]
    [found] = run_eval("--ckpt", folder / "model", *options, size)
    assert (found["tokens"], found["contaminated_tokens"]) == (len(seen), seen.sum())
    assert found["loss"] == pytest.approx(nats.mean(), abs=1e-5)
    assert found["clean"]["tokens"] == (~seen).sum()
    assert found["clean"]["loss"] == pytest.approx(nats[~seen].mean(), abs=1e-5)
    assert abs(nats[~seen].mean() - nats.mean()) > 1e-3
    code, output, errors = velocity("eval", "--ckpt", folder / "model", *options, size)
    assert code == 0, errors
    [row] = [line for line in output.splitlines() if "in the training set" in line]
    assert f"without {seen.sum():,} in the training set" in row
    assert f"{found['clean']['loss']:.4f}" in row
    # A text shorter than a row is looked for as a whole; with no token left there is no loss.
    (tmp_path / "b.txt").write_text(" ".join(words[0][:4]))
    [short] = run_eval("--ckpt", folder / "model", *options, 200)
    own = [part["tokens"] for part in short["by_source"] if part["source"].endswith("b.txt")]
    assert [short["contaminated_tokens"]] == own
    options = ["--text", tmp_path / "b.txt", *options[4:]]
    [none] = run_eval("--ckpt", folder / "model", *options, 200)
    assert [none["contaminated_tokens"]] == own
    assert (none["clean"]["tokens"], none["clean"]["loss"]) == (0, None)
    code, output, errors = velocity("eval", "--ckpt", folder / "model", *options, 200)
    assert code == 0, errors
    assert f"without {own[0]} in the training set" in output


@pytest.mark.parametrize("name", ["bytes", "sentencepiece"])
def test_bytes_are_those_of_the_text(name: str) -> None:
    """Also where the tokenizer puts a space before each text, which is not the text's."""
    texts = make_texts(5)
    tokenizer_json = build_sentencepiece(texts) if name == "sentencepiece" else TOKENIZER_JSON
    tokenizer = parse_tokenizer(tokenizer_json)
    end = tokenizer.token_to_id("<|endoftext|>" if name == "bytes" else "</s>")
    ids = [end]
    for text in texts:
        ids += [*encode_plainly(tokenizer, text), end]
    is_text, num_bytes = measure_text(read_spelling(tokenizer, end), np.array([ids]))
    assert num_bytes.sum() == sum(len(text.encode()) for text in texts)
    assert (~is_text).sum() == len(texts)


def test_a_standard_error_is_that_of_a_ratio_of_sums() -> None:
    """As the spread of the ratio over many samples of windows of many sizes."""
    generator = np.random.default_rng(0)
    bottoms = generator.integers(1, 40, (2000, 60)).astype(float)
    tops = bottoms * generator.normal(3, 1, bottoms.shape)
    values, errors = [], []
    for some_tops, some_bottoms in zip(tops, bottoms, strict=True):
        ratio = Ratio()
        for top, bottom in zip(some_tops.tolist(), some_bottoms.tolist(), strict=True):
            ratio.add(top, bottom)
        values.append(ratio.value)
        errors.append(ratio.stderr)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.05)
    nothing = Ratio()
    for _ in range(2):
        nothing.add(1.0, 0.0)  # Tokens that stand for no bytes.
    assert (nothing.value, nothing.stderr) == (None, None)


def test_logits_are_never_all_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With chunks of 128 places, no more of them meet the head, and the loss is the same."""
    options = ("--shards", folder / "set", "--split", "train", "--batch-size", 16)
    [before] = run_eval("--ckpt", folder / "model", *options)
    sizes = []
    plain = torch.Tensor.argmax

    def watch(logits: torch.Tensor, *others: object) -> torch.Tensor:
        sizes.append(len(logits))
        return plain(logits, *others)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(torch.Tensor, "argmax", watch)
    monkeypatch.setitem(model.logits.chunks.MAX_LOGITS_BYTES, "cpu", 1)
    [after] = run_eval("--ckpt", folder / "model", *options)
    assert max(sizes) == 128
    assert after["loss"] == pytest.approx(before["loss"], abs=1e-6)


def test_people_get_a_table(folder: Path) -> None:
    options = ("--shards", folder / "set", "--length", LENGTH)
    code, output, errors = velocity("eval", "--ckpt", folder / "model", *options)
    assert (code, errors) == (0, "")
    [found] = run_eval("--ckpt", folder / "model", *options)
    [row] = [line.split() for line in output.splitlines() if line.startswith("all ")]
    assert row[1:4] == [
        f"{found['tokens']:,}",
        f"{found['loss']:.4f}",
        f"{found['loss_stderr']:.4f}",
    ]
    assert "source books.parquet" in output
    assert "from position 12" in output


def test_what_cannot_be_evaluated_is_told(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    write_set(tmp_path / "other", build_sentencepiece(make_texts(5)), make_texts(12), "</s>")
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "bad.txt").write_bytes(b"a\xff")
    build_index(tmp_path / "other", lambda line: None)
    ours, a_text = ("--shards", folder / "set"), ("--text", tmp_path / "a.txt")
    cases: dict[tuple[object, ...], str] = {
        (): "what should be predicted?",
        (*ours, "--text", tmp_path / "a.txt"): "--shards and --text: give one of them",
        (*ours, "--split", "test"): "--split is 'test'; expected one of train, validation",
        (*ours, "--length", 129): "--length is 129; the model's context is 128 tokens",
        (*ours, "--length", 8, "--stride", 9): "--stride is 9, more than the 8 tokens of a window",
        ("--text", tmp_path / "empty.txt"): "is empty; expected text",
        ("--text", tmp_path / "a.txt", "--windows", 3): "--windows is for --shards",
        (*a_text, "--split", "train"): "--split is for --shards; leave it out",
        (*a_text, *a_text): "/a.txt twice, which would count twice; give it once",
        ("--text", tmp_path / "bad.txt"): "byte 1, on line 1, is 0xff, which is not UTF-8",
        ("--shards", tmp_path / "other"): "was made with another tokenizer",
        (*ours, "--all"): "no complete checkpoint to load",
        (*ours, "--contamination", folder / "set"): "--contamination is for --task and --text",
        (*a_text, "--contamination", folder / "set"): "velocity shards index",
        (*a_text, "--contamination", tmp_path / "other"): "/other: has other tokens for ",
    }
    for options, words in cases.items():
        code, output, errors = velocity("eval", "--ckpt", folder / "model", *options)
        assert (code, output) == (1, ""), options
        assert words in errors, options
    short = ("--shards", tmp_path / "short")
    write_set(tmp_path / "short", TOKENIZER_JSON, ["a"], "<|endoftext|>")
    code, _, errors = velocity("eval", "--ckpt", folder / "model", *short, "--split", "train")
    assert code == 1
    assert "fewer than a window of 129" in errors
    assert CONFIG.max_position_embeddings == 128

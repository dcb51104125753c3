"""`velocity tokenizer train`: what it makes of which text, and what its report says."""

import hashlib
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from prep.python_docs import read_topics
from prep.vocabulary.folder import TOKENIZER_CONFIG
from prep.vocabulary.passages import PASSAGE_BYTES, Passages, cut_long, cut_text
from prep.vocabulary.patterns import PATTERNS, make_splitter
from prep.vocabulary.report import make_report
from prep.vocabulary.survey import Entries, choose
from shards.tokenizer import load_tokenizer, read_spelling
from tests.commands import velocity
from tests.texts import write_jsonl, write_parquet
from tests.tiktoken_gpt2 import make_encoding, make_vocab

VOCAB_SIZE = 1000
SPECIAL = ("<|endoftext|>", "<|user|>")
# Every kind of text that a vocabulary of English knows nothing of.
STRANGE = [
    "",
    "\x00\x01\x7f",
    "<|endoftext|> and <|user|>",
    "北京 Привет 🙂‍↔️",
    "\r\n \n\t  x",
    "a" * 3000,
]


def topics() -> list[str]:
    """Python's help topics: about 300 KB of English and code."""
    texts = [text[:4000] for _, text in read_topics()]
    assert sum(map(len, texts)) > 100_000
    return texts


def train(out: Path, *inputs: Path, **options: object) -> tuple[int, str, str]:
    """Run the command with small numbers."""
    words = {"vocab_size": VOCAB_SIZE, "held_out_fraction": "0.1"} | options
    given = [word for path in inputs for word in ("--input", path)]
    more = [
        word
        for name, value in words.items()
        for one in (value if isinstance(value, tuple) else (value,))
        for word in (f"--{name.replace('_', '-')}", one)
    ]
    return velocity("tokenizer", "train", "--out", out, *given, *more)


def read_report(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return report


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of a thousand ids, two of them special."""
    folder = tmp_path_factory.mktemp("trained")
    source = write_jsonl(folder / "topics.jsonl", [*topics()])
    code, out, errors = train(folder / "own", source, special_token=SPECIAL[1])
    assert code == 0, errors
    assert out.startswith("1,000 ids, from ")
    assert "of memory; " in errors
    assert "next: velocity prep --tokenizer " in errors
    assert sorted(path.name for path in folder.iterdir()) == ["own", "topics.jsonl"]
    return folder / "own"


def test_any_text_comes_back_and_is_never_a_special_token(trained: Path) -> None:
    tokenizer = load_tokenizer(trained / "tokenizer.json")
    characters = [chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000]
    texts = [*STRANGE, "".join(characters[:100_000:7])]
    texts += ["".join(characters[i : i + 64]) for i in range(0, len(characters), 64)]
    for text, encoding in zip(texts, tokenizer.encode_batch_fast(texts), strict=True):
        assert tokenizer.decode(encoding.ids, skip_special_tokens=False) == text
        assert max(encoding.ids, default=0) < VOCAB_SIZE - len(SPECIAL)
    # All bytes are there, and each token is bytes.
    contents = read_spelling(tokenizer, VOCAB_SIZE - len(SPECIAL)).inner
    assert {bytes([byte]) for byte in range(256)} <= set(contents)
    assert [tokenizer.token_to_id(token) for token in SPECIAL] == [998, 999]
    assert contents[998:] == [b"", b""]


def test_transformers_loads_it_and_finds_its_end_of_document(trained: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(trained))
    ours = load_tokenizer(trained / "tokenizer.json")
    assert len(theirs) == VOCAB_SIZE
    assert (theirs.eos_token, theirs.eos_token_id) == ("<|endoftext|>", 998)
    assert theirs.convert_tokens_to_ids("<|user|>") == 999
    for text in [*STRANGE[3:], *topics()[:5]]:
        ids = theirs(text).input_ids
        assert ids == ours.encode(text).ids
        assert theirs.decode(ids) == text
    assert theirs("x<|endoftext|>").input_ids[-1] == 998


def hash_text(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big")


def find_held_out(texts: Sequence[str], fraction: float) -> list[str]:
    """The texts with the lowest hashes that make at most a fraction of all bytes."""
    left = int(fraction * sum(len(text.encode("utf-8")) for text in texts))
    held_out = []
    for text in sorted(texts, key=hash_text):
        left -= len(text.encode("utf-8"))
        if left < 0:
            break
        held_out.append(text)
    return held_out


def test_the_report_is_what_others_count(trained: Path) -> None:
    report = read_report(trained)
    held_out = find_held_out(topics(), 0.1)
    make_vocab()
    gpt2, ours = make_encoding(), load_tokenizer(trained / "tokenizer.json")
    ids = [i for text in held_out for i in ours.encode(text).ids]
    num_bytes = sum(len(text.encode("utf-8")) for text in held_out)
    num_gpt2 = sum(len(gpt2.encode_ordinary(text)) for text in held_out)
    found = report["held_out"]
    assert found["bytes"] == num_bytes
    assert found["passages"] == len(held_out)
    assert (found["tokens"], found["gpt2_tokens"]) == (len(ids), num_gpt2)
    assert found["bytes_per_token"] == pytest.approx(num_bytes / len(ids), rel=1e-5)
    assert found["gpt2_bytes_per_token"] == pytest.approx(num_bytes / num_gpt2, rel=1e-5)
    assert found["bytes_per_token_over_gpt2"] == pytest.approx(num_gpt2 / len(ids), rel=1e-5)
    assert found["ids_used"] == len(set(ids))
    assert found["ids_never_used"] == VOCAB_SIZE - len(SPECIAL) - len(set(ids))
    [by_file] = found["bytes_per_token_by_file"].items()
    assert by_file[0] == "topics.jsonl"
    assert by_file[1]["bytes_per_token"] == found["bytes_per_token"]
    total = sum(len(text.encode("utf-8")) for text in topics())
    assert report["text"]["bytes_read"] == total
    assert report["text"]["train_bytes"] == total - num_bytes
    longest = max(len(ours.decode([i])) for i in range(VOCAB_SIZE - 2))
    assert len(report["longest_tokens"][0]) == longest


def test_the_same_text_makes_the_same_bytes_on_any_number_of_threads_in_any_files(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = topics()
    half = len(texts) // 2
    sources = [
        write_parquet(tmp_path / "a.parquet", [*reversed(texts[half:])]),
        write_jsonl(tmp_path / "z.jsonl", [None, "", *texts[:half]]),
    ]
    for threads in ("1", "5"):
        monkeypatch.setenv("RAYON_NUM_THREADS", threads)
        out = tmp_path / threads
        code, _, errors = train(out, *sources, special_token=SPECIAL[1])
        assert code == 0, errors
        for name in ("tokenizer.json", TOKENIZER_CONFIG):
            assert (out / name).read_bytes() == (trained / name).read_bytes()


def make_unique(count: int) -> dict[str, str]:
    """Texts by the one word that each has to itself, many times over."""
    generator = random.Random(3)
    words = ["".join(generator.choices("bcdfghjklmnpqrstvwxz", k=9)) for _ in range(count)]
    return {word: f" {word}" * 60 for word in words}


def train_most(out: Path, *inputs: Path, **options: object) -> None:
    """Train with as many ids as it says there can be: enough for each word to be one token."""
    _, _, errors = train(out, *inputs, vocab_size=10_000, **options)
    most = re.findall(r"give more text, or --vocab-size (\d+)", errors)[0]
    code, _, errors = train(out, *inputs, vocab_size=most, **options)
    assert code == 0, errors


def test_what_is_held_out_leaves_no_merges(tmp_path: Path) -> None:
    texts = make_unique(60)
    source = write_jsonl(tmp_path / "a.jsonl", [*texts.values()])
    train_most(tmp_path / "own", source, held_out_fraction="0.2")
    held_out = find_held_out([*texts.values()], 0.2)
    assert len(held_out) == 12
    tokenizer = load_tokenizer(tmp_path / "own" / "tokenizer.json")
    for word, text in texts.items():
        is_token = len(tokenizer.encode(f" {word}").ids) == 1
        assert is_token == (text not in held_out)


def test_of_much_text_as_much_as_is_asked_for_is_chosen_from_all_of_it(tmp_path: Path) -> None:
    texts = make_unique(200)
    total = sum(map(len, texts.values()))
    sources = [write_jsonl(tmp_path / f"{i}.jsonl", [*texts.values()][i::2]) for i in range(2)]
    train_most(tmp_path / "own", *sources, train_bytes=total // 4, held_out_fraction="0")
    report = read_report(tmp_path / "own")
    assert report["held_out"] is None
    assert total // 4 - 600 < report["text"]["train_bytes"] <= total // 4
    # Those with the lowest hashes; the others' words are not known.
    chosen = find_held_out([*texts.values()], 0.25)
    assert {text in [*texts.values()][::2] for text in chosen} == {True, False}
    assert sum(map(len, chosen)) == report["text"]["train_bytes"]
    tokenizer = load_tokenizer(tmp_path / "own" / "tokenizer.json")
    for word, text in texts.items():
        assert (len(tokenizer.encode(f" {word}").ids) == 1) == (text in chosen)


def test_of_many_files_only_some_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prep.vocabulary.run.READ_TIMES", 2)
    texts = [*make_unique(200).values()]
    for i in range(20):
        write_jsonl(tmp_path / f"{i}.jsonl", texts[i::20])
    size = sum(map(len, texts))
    code, _, errors = train(
        tmp_path / "own", tmp_path, vocab_size=300, train_bytes=size // 10, held_out_fraction="0"
    )
    assert code == 0, errors
    assert "4 of 20 files are read, chosen by their names' hashes" in errors
    assert read_report(tmp_path / "own")["text"]["files_read"] == 4


def test_copies_are_never_separated_and_something_is_always_held_out() -> None:
    entries = Entries(limit=1000)
    hashes = np.array([5, 9, 5, 2, 5], np.uint64)
    sizes = np.array([10, 10, 10, 1, 10], np.int64)
    entries.add(Passages(None, hashes, sizes))
    entries.thin_out()
    choice, train_bytes, held_out_bytes = choose(entries, Fraction(1, 100), 30)
    assert (choice.held_out_last, held_out_bytes) == (2, 1)
    assert (choice.train_last, train_bytes) == (5, 30)
    assert choice.is_trained_on(hashes).tolist() == [True, False, True, False, True]
    assert choice.is_held_out(hashes).tolist() == [False, False, False, True, False]
    with pytest.raises(ValueError, match=r"--train-bytes is 29; expected at least 30, as"):
        choose(entries, Fraction(1, 100), 29)


def test_a_long_document_is_many_passages(tmp_path: Path) -> None:
    book = "\n\n".join(topics())
    rows = "北京" * 100_000
    for text in (book, rows, "x" * 500_000, " y" * 100_000):
        content = text.encode("utf-8")
        passages = [*cut_text(content)]
        assert b"".join(passages) == content
        assert max(map(len, passages)) <= 2 * PASSAGE_BYTES
        assert len(passages) > 1
        for passage in passages:
            passage.decode("utf-8")
    mixed = cut_long(pa.array([None, "", "short", book], pa.large_string())).to_pylist()
    assert mixed[0] == "short"
    assert "".join(mixed[1:]) == book
    (tmp_path / "book.txt").write_text(book, encoding="utf-8")
    code, _, errors = train(tmp_path / "own", tmp_path / "book.txt", held_out_fraction="0.01")
    assert code == 0, errors
    assert 0 < read_report(tmp_path / "own")["held_out"]["bytes"] < len(book) // 2


def test_patterns_split_as_the_models_they_are_named_after() -> None:
    text = "I'LL pay $12345.6,\n\n  two words\tx"
    expected = {
        "llama3": ["I", "'LL", " pay", " $", "123", "45", ".", "6", ",\n\n", " ", " two", " words"],
        "qwen2": ["I", "'LL", " pay", " $", "1", "2", "3", "4", "5", ".", "6", ",\n\n", " "],
        "gpt2": ["I", "'", "LL", " pay", " $", "12345", ".", "6", ",", "\n\n ", " two", " words"],
    }
    assert expected.keys() == PATTERNS.keys()
    for name, pieces in expected.items():
        found = [piece for piece, _ in make_splitter(name).pre_tokenize_str(text)]
        assert found[: len(pieces)] == pieces
        assert "".join(found) == text
    assert [p for p, _ in make_splitter(r"\d|\D+").pre_tokenize_str("a12")] == ["a", "1", "2"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"vocab_size": 256},
            "--vocab-size is 256; expected at least 257: 256 bytes and 1 special",
        ),
        ({"vocab_size": 0}, "--vocab-size is 0; expected a number from 1 to 16,777,216"),
        ({"vocab_size": 30_000}, "ids; give more text, or --vocab-size "),
        ({"pattern": "(a"}, "--pattern is '(a'; expected llama3, qwen2, gpt2, or a regular"),
        ({"pattern": " "}, "--pattern is empty"),
        ({"special_token": "cat"}, "the special token 'cat' is one word to --pattern"),
        ({"special_token": "Ġthe"}, "the special token 'Ġthe' is one word to --pattern"),
        ({"special_token": "<|endoftext|>"}, "--special-token: the same token twice"),
        ({"special_token": " "}, "--special-token is empty"),
        ({"end_of_document": ""}, "--end-of-document is empty"),
        ({"pattern": r"\S+|\s+"}, "the special token '<|endoftext|>' is one word to --pattern"),
        ({"held_out_fraction": "0.6"}, "--held-out-fraction is 0.6; expected a number from 0 to"),
        ({"train_bytes": 1 << 31}, "--train-bytes is 2147483648; expected a number from 1 to"),
        ({"train_bytes": 3}, "--train-bytes is 3; expected at least 4, as the first passage has"),
        (
            {"text_column": "text"},
            "a.jsonl, line 1: no key 'text'; the keys are content; name the right",
        ),
        ({"on_bad_document": "ignore"}, "--on-bad-document is ignore; expected error or skip"),
    ],
)
def test_wrong_options_are_one_line(
    options: dict[str, object], message: str, tmp_path: Path
) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", ["aaaa", "bbbb", "cccc cccc"])
    code, _, errors = train(tmp_path / "own", source, **options)
    assert code == 1
    last = errors.splitlines()[-1]
    assert last.startswith("velocity: ")
    assert message in last
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "no text"),
        (["only one"], "--input: 8 bytes of text in 1 different passages are too few"),
        (["copy", "copy"], "--input: 8 bytes of text in 1 different passages are too few"),
        ([None, ""], "--input: 0 bytes of text in 0 different passages are too few"),
    ],
)
def test_too_little_text_is_one_line(texts: list[str], message: str, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [*texts])
    code, _, errors = train(tmp_path / "own", source, vocab_size=257)
    assert code == 1
    assert message in errors or not texts
    assert errors.splitlines()[-1].startswith("velocity: ")


def test_inputs_are_needed_and_must_be_there(tmp_path: Path) -> None:
    assert "no --input; name the files or folders" in train(tmp_path / "own")[2]
    code, _, errors = train(tmp_path / "own", tmp_path / "nowhere.txt")
    assert (code, "nowhere.txt: no such file" in errors) == (1, True)


def test_an_output_that_cannot_be_made_is_told_before_the_text_is_read(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", topics()[:40])
    for out, message in (
        (source / "own", "a.jsonl: Not a directory"),
        (source, "a.jsonl: is there, and is not the tokenizer of these options"),
        ("s3://bucket/own", "s3://bucket/own: is a URL, and --out takes a path on this machine"),
    ):
        code, _, errors = train(out, source, vocab_size=300)  # type: ignore[arg-type]
        assert code == 1
        [line] = errors.splitlines()
        assert message in line


def test_nothing_is_overwritten_and_what_is_finished_is_not_done_again(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", topics()[:40])
    own = tmp_path / "own"
    own.mkdir()  # An empty folder is free.
    assert train(own, source, vocab_size=300)[0] == 0
    before = {path.name: path.read_bytes() for path in own.iterdir()}
    assert before.keys() == {"tokenizer.json", "tokenizer_config.json", "report.json"}
    code, _, errors = train(own, source, vocab_size=300)
    assert (code, "is finished, and nothing was left to do" in errors) == (0, True)
    code, _, errors = train(own, source, vocab_size=301)
    assert code == 1
    assert "nothing is overwritten, so choose another --out" in errors
    assert {path.name: path.read_bytes() for path in own.iterdir()} == before
    (own / "tokenizer.json").write_text("{}")
    assert train(own, source, vocab_size=300)[0] == 1
    write_jsonl(source, topics()[:41])
    assert train(own, source, vocab_size=300)[0] == 1


def test_bad_documents_are_errors_or_left_out_and_counted(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", topics()[:40])
    with open(source, "ab") as file:
        file.write(b"not JSON\n")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 damaged")
    code, _, errors = train(tmp_path / "own", source, tmp_path / "b.parquet", vocab_size=300)
    assert (code, len(errors.splitlines())) == (1, 1)
    code, _, errors = train(
        tmp_path / "own", source, tmp_path / "b.parquet", vocab_size=300, on_bad_document="skip"
    )
    assert code == 0, errors
    text = read_report(tmp_path / "own")["text"]
    assert (text["bad_documents"], text["bad_files"]) == (1, ["b.parquet"])


def test_more_memory_than_the_machine_has_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prep.vocabulary.run.find_memory", lambda: (100_000_000, 100_000_000))
    source = write_jsonl(tmp_path / "a.jsonl", topics()[:40])
    code, _, errors = train(tmp_path / "own", source, vocab_size=300)
    assert code == 1
    assert "of memory, and this machine has 100 MB; try a smaller --train-bytes" in errors


def write_endless(path: Path) -> Path:
    """Text that takes long: of Chinese characters without spaces, nearly every clause is new."""
    generator = random.Random(0)
    characters = [chr(0x4E00 + i) for i in range(3000)]
    clauses = ["".join(generator.choices(characters, k=12)) for _ in range(60_000)]
    return write_jsonl(path, ["\uff0c".join(clauses[i::100]) for i in range(100)])


def test_a_killed_process_is_told(tmp_path: Path) -> None:
    source = write_endless(tmp_path / "a.jsonl")

    def kill() -> None:
        while not (children := multiprocessing.active_children()):
            time.sleep(0.05)
        time.sleep(0.5)
        children[0].kill()

    thread = threading.Thread(target=kill)
    thread.start()
    code, _, errors = train(tmp_path / "own", source, vocab_size=20_000)
    thread.join()
    assert code == 1
    assert "ended with exit code -9, most likely for lack of memory; try a smaller" in errors
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_ctrl_c_ends_it_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    source = write_endless(tmp_path / "a.jsonl")
    command = [sys.executable, "-m", "cli", "tokenizer", "train", "--input", str(source)]
    with subprocess.Popen(
        [*command, "--out", str(tmp_path / "own")], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        while "of memory" not in (line := process.stderr.readline()):
            assert line
        time.sleep(2)
        started = time.monotonic()
        os.kill(process.pid, signal.SIGINT)
        errors = process.stderr.read()  # Until the process that trains has ended as well.
    assert process.returncode == 130, errors
    assert time.monotonic() - started < 5
    assert f"stopped; nothing was written to {tmp_path / 'own'}" in errors
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_report_without_held_out_text_has_no_figures(trained: Path) -> None:
    tokenizer_json = (trained / "tokenizer.json").read_text(encoding="utf-8")
    report = make_report(tokenizer_json, VOCAB_SIZE - len(SPECIAL), {})
    assert report["held_out"] is None
    assert report["vocab_size"] == VOCAB_SIZE

"""--drop-contained: documents with passages of test texts go, and no others."""

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prep.append import append_sources
from prep.gather import finish_parts
from prep.policy import Policy
from prep.request import Request
from prep.run_part import prepare_part
from prep.text.contained import Passages, find_passages
from prep.units.receipts import Audit
from shards.disk.durable import hash_file
from shards.disk.part import parse_part
from shards.format import read_manifest
from tests.commands import velocity
from tests.planted import make_words
from tests.prep.test_dedup import read_documents
from tests.texts import prepare_quietly, set_bytes, write_jsonl

OPTIONS = {"validation_fraction": "0.2", "unit_bytes": 20_000, "shard_tokens": 9000}
Grams = set[tuple[str, ...]]


def split_words(text: str) -> list[str]:
    return re.findall(r"[0-9a-zäéшж]+", text.lower())


def list_grams(text: str, size: int) -> Grams:
    words = split_words(text)
    return {tuple(words[at : at + size]) for at in range(len(words) - size + 1)}


def holds(text: str, tests: list[str], num_words: int = 13) -> bool:
    """The reference: sets of tuples of words."""
    for test in tests:
        size = min(len(split_words(test)), num_words)
        if size >= min(8, num_words) and list_grams(test, size) & list_grams(text, size):
            return True
    return False


@pytest.fixture(scope="module")
def tests_and_texts() -> tuple[list[str], list[str]]:
    """Test texts of many lengths, and documents of which some quote them, more or less."""
    generator = random.Random(4)
    words = make_words(generator, 900)
    tests = [" ".join(generator.choices(words, k=k)) for k in (3, 7, 8, 9, 12, 13, 14, 40, 200)]
    texts = []
    for _ in range(400):
        found = generator.choices(words, k=generator.randint(5, 120))
        if generator.random() < 0.4:
            test = split_words(generator.choice(tests))
            size = generator.randint(1, 16)
            start = generator.randrange(max(len(test) - size, 0) + 1)
            at = generator.randrange(len(found))
            quoted = [generator.choice((w, w.upper(), f"{w},")) for w in test[start:][:size]]
            found[at:at] = quoted
        texts.append(" ".join(found))
    return tests, [*texts, *tests]


@pytest.fixture(scope="module")
def folder(
    tests_and_texts: tuple[list[str], list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The documents in a.jsonl, the test texts in three files of three kinds."""
    folder = tmp_path_factory.mktemp("contained")
    tests, texts = tests_and_texts
    write_jsonl(folder / "a.jsonl", [*texts])
    (folder / "t.txt").write_text("\n\n".join(tests[:3]) + "\n")
    write_jsonl(folder / "t.jsonl", [*tests[3:6], None, ""])
    pq.write_table(pa.table({"content": tests[6:]}), folder / "t.parquet")
    return folder


def name_tests(folder: Path) -> tuple[str, ...]:
    return tuple(str(folder / f"t.{kind}") for kind in ("txt", "jsonl", "parquet"))


@pytest.fixture(scope="module")
def straight(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("straight") / "shards"
    tests = name_tests(folder)
    prepare_quietly(out, folder / "a.jsonl", drop_contained=tests, min_chars=60, **OPTIONS)
    return out


@pytest.mark.parametrize("num_words", [1, 5, 8, 13])
def test_a_text_is_marked_if_it_holds_a_passage(
    tests_and_texts: tuple[list[str], list[str]], tmp_path: Path, num_words: int
) -> None:
    tests, texts = tests_and_texts
    passages, counts = find_passages(pa.array(tests, pa.large_string()), num_words)
    assert counts.tolist() == [len(split_words(test)) for test in tests]
    np.unique(passages).tofile(tmp_path / "p")
    found = Passages(tmp_path / "p").mark(pa.array(["", *texts], pa.large_string()))
    expected = [holds(text, tests, num_words) for text in texts]
    assert found.tolist() == [False, *expected]
    assert 9 < sum(expected) < len(texts) or num_words == 1


def test_documents_with_passages_are_dropped_and_counted(
    straight: Path, tests_and_texts: tuple[list[str], list[str]]
) -> None:
    tests, texts = tests_and_texts
    long_enough = [text for text in texts if len(text) >= 60]
    expected = {text for text in long_enough if not holds(text, tests)}
    assert set(read_documents(straight).values()) == expected
    manifest = read_manifest(straight)
    audit = Audit(**manifest.audit)
    assert audit.dropped["contained"] == len(long_enough) - len(expected)
    assert audit.dropped["min_chars"] == len(texts) - len(long_enough)
    policy = manifest.content["policy"]
    assert len(policy["contained_sha256"]) == 3
    assert policy["contained_words"] == 13
    assert "drop_contained" not in policy


def test_neither_workers_nor_places_nor_parts_change_a_byte(
    folder: Path, straight: Path, tmp_path: Path
) -> None:
    """The files may lie elsewhere and be named in another order; --finish needs none of them."""
    (tmp_path / "moved").mkdir()
    names = []
    for name in reversed(name_tests(folder)):
        content = Path(name).read_bytes()
        names.append(str(tmp_path / "moved" / Path(name).name))
        Path(names[-1]).write_bytes(content)
    options: dict[str, Any] = OPTIONS | {"drop_contained": tuple(names), "min_chars": 60}
    prepare_quietly(tmp_path / "one", folder / "a.jsonl", workers=3, **options)
    out = tmp_path / "parts"
    for number in (1, 0):
        task, inputs = parse_part(f"{number}/2"), (str(folder / "a.jsonl"),)
        request = Request(out, policy=Policy(**options), inputs=inputs, task=task, workers=1)
        prepare_part(request, lambda line: None)
    finish_parts(Request(out, task="finish", workers=1), lambda line: None)
    for made in (tmp_path / "one", out):
        assert set_bytes(made) == set_bytes(straight)
        assert read_manifest(made).dataset_id == read_manifest(straight).dataset_id


def test_other_test_texts_are_another_set(folder: Path, straight: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "t.jsonl", ["one two three four five six seven eight nine ten"])
    tests = (*name_tests(folder)[:2], str(tmp_path / "t.jsonl"))
    with pytest.raises(ValueError, match="contained_sha256 was "):
        prepare_quietly(straight, folder / "a.jsonl", drop_contained=tests, min_chars=60, **OPTIONS)


def test_what_is_appended_is_tested_as_well(folder: Path, tmp_path: Path) -> None:
    out, tests = tmp_path / "shards", name_tests(folder)
    test = json.loads((folder / "t.jsonl").read_text().splitlines()[2])["content"]
    write_jsonl(tmp_path / "b.jsonl", [f"quoted: {test.upper()}!", "not quoted, and so kept"])
    prepare_quietly(out, folder / "a.jsonl", drop_contained=tests, **OPTIONS)
    policy = Policy(drop_contained=tests, **OPTIONS)  # type: ignore[arg-type]
    request = Request(
        out, policy=policy, inputs=(str(tmp_path / "b.jsonl"),), workers=1, task="append"
    )
    before = read_manifest(out).audit["dropped"]["contained"]
    append_sources(request, lambda line: None)
    assert ("b.jsonl", 1) in read_documents(out)
    assert ("b.jsonl", 0) not in read_documents(out)
    assert read_manifest(out).audit["dropped"]["contained"] == before + 1
    other = Request(out, policy=Policy(**OPTIONS), inputs=("c.jsonl",), task="append")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="made with other options: contained_sha256 was"):
        append_sources(other, lambda line: None)


def test_another_column_and_what_is_said(folder: Path, tmp_path: Path) -> None:
    question = "Which of these seven rivers is the longest one of all?"
    (tmp_path / "q.jsonl").write_text(
        json.dumps({"question": question}) + "\n" + json.dumps({"question": "Why?"}) + "\n"
    )
    write_jsonl(tmp_path / "a.jsonl", [f"Q: {question} A: none", "something else", "Why?"])
    options = ("--drop-contained", tmp_path / "q.jsonl", "--contained-column", "question")
    code, _, errors = velocity(
        "prep", "--out", tmp_path / "x", "--input", tmp_path / "a.jsonl", *options, "--workers", "1"
    )
    assert code == 0, errors
    assert "q.jsonl: 2 test texts; 1 have too few words to be looked for" in errors
    assert sorted(read_documents(tmp_path / "x").values()) == ["Why?", "something else"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ["--drop-contained", "none.jsonl"],
            "--drop-contained none.jsonl: no such file; expected a file of test texts: .txt, "
            "JSON lines or .parquet",
        ),
        (["--drop-contained", "."], "--drop-contained .: is a folder; expected a file of test te"),
        (["--drop-contained", ""], "--drop-contained is empty; name what is meant, or leave the "),
        (["--contained-words", "8"], "--contained-words is for --drop-contained; give both or "),
        (
            ["--drop-contained", "short.txt"],
            "--drop-contained short.txt: no text has 8 words or more; look there, and at",
        ),
        (["--drop-contained", "a.jsonl", "--contained-column", "x"], "a.jsonl, line 1: "),
        (["--drop-contained", "a.docx"], "a.docx: unknown kind of file; expected "),
        (["--drop-contained", "bad.parquet"], "bad.parquet: "),
        (["--drop-contained", "a.jsonl", "--contained-words", "0"], "--contained-words is 0; "),
    ],
)
def test_wrong_test_texts_are_one_line(tmp_path: Path, options: list[str], expected: str) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["some text"])
    (tmp_path / "short.txt").write_text("too short")
    (tmp_path / "a.docx").write_text("PK")
    (tmp_path / "bad.parquet").write_text("PAR1")
    command = ("prep", "--out", "x", "--input", "a.jsonl", *options)
    code, _, errors = velocity(*command, cwd=tmp_path)
    assert code == 1
    assert errors.splitlines()[-1].startswith(f"velocity: {expected}"), errors
    assert not list((tmp_path / "x").glob("*.bin"))


def test_a_file_of_test_texts_is_hashed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = write_jsonl(tmp_path / "t.jsonl", ["one two three four five six seven eight nine"])
    source = write_jsonl(tmp_path / "a.jsonl", ["some text"])
    hashed: list[Path] = []

    def hash_and_count(path: Path) -> str:
        hashed.append(path)
        return hash_file(path)

    monkeypatch.setattr("prep.text.contained.hash_file", hash_and_count)
    words = ("--input", source, "--drop-contained", texts, "--workers", "1")
    assert velocity("prep", "--out", tmp_path / "x", *words, cwd=tmp_path)[0] == 0
    assert hashed == [texts]
    more = write_jsonl(tmp_path / "b.jsonl", ["some more"])
    words = ("--input", more, "--drop-contained", texts, "--workers", "1", "--append")
    assert velocity("prep", "--out", tmp_path / "x", *words, cwd=tmp_path)[0] == 0
    assert hashed == [texts, texts]

"""From a written text to the documents that hold it, and the steps of a run that saw it there."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.index.build import build_index
from shards.index.passages import Wish
from shards.reader import open_shards
from tests.commands import velocity
from tests.runs import run_small
from tests.tiny import TOKENIZER_JSON
from tests.tokenized import split_of, write_set
from train.tracing.passages import describe_answer, open_passages

TEXTS = [
    f"Document number {n} says: the quick brown fox of {n * n} jumps over its lazy dog." * 3
    for n in range(40)
]
STEPS = 12


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a set, its index, and a short run's checkpoints."""
    folder = tmp_path_factory.mktemp("passages")
    write_set(folder / "set", TOKENIZER_JSON, TEXTS, "<|endoftext|>", shard_tokens=1000)
    build_index(folder / "set", lambda line: None, array_tokens=600)
    run_small(folder / "set", folder, training__num_training_steps=STEPS)
    return folder


def steps_seeing(folder: Path, start: int, stop: int) -> list[int]:
    """The steps that saw a token of [start, stop): every window of every step is looked at."""
    passages = open_passages(open_shards(folder / "set"), folder / "checkpoints", print)
    assert passages.tracer is not None
    order = passages.tracer.order
    steps = []
    for step in range(1, STEPS + 1):
        samples = np.arange((step - 1) * 4, step * 4)
        starts = order.starts(samples)
        if ((starts < stop) & (starts + order.max_seq_length + 1 > start)).any():
            steps.append(step)
    return steps


def test_each_place_has_its_document_and_its_steps(run: Path) -> None:
    passages = open_passages(open_shards(run / "set"), run / "checkpoints", print)
    seen = 0
    for number in (3, 12, 25, 7, 17, 27, 37):
        text = f"says: the quick brown fox of {number * number} jumps"
        answer = passages.answer(text, Wish())
        assert answer["steps"] == STEPS
        [passage] = answer["passages"]
        assert (passage["text"].strip(), passage["count"]) == (text, 3)
        for place in passage["places"]:
            assert place["url"] == f"https://example.com/{number}"
            assert place["split"] == (split_of(number))
            stop = place["token"] + passage["tokens"]
            expected = (
                [] if split_of(number) != "train" else steps_seeing(run, place["token"], stop)
            )
            assert place["steps"] == expected
            assert place["num_steps"] == len(expected)
            seen += len(expected)
    assert seen > 0


def test_find_says_where_and_when(run: Path) -> None:
    text = "the quick brown fox of 144 jumps"
    command = ["shards", "find", run / "set", "--text", text, "--places", "2"]
    code, output, _ = velocity(*command, "--run", run / "checkpoints")
    assert code == 0
    [first, *places, last] = output.splitlines()
    assert first.endswith(f" tokens, 3 places: {text}")
    assert len(places) == 2
    for line in places:
        assert "texts row 12 https://example.com/12: " in line
        assert line.endswith(f" of 1 to {STEPS}")
    assert last == "  and 1 place more"
    # The same as JSON, from a file, and without a run.
    (run / "text.txt").write_text(text + "\n", encoding="utf-8")
    command[3:5] = ["--text-file", run / "text.txt"]
    code, output, errors = velocity(*command, "--json", cwd=run / "set")
    assert (code, errors) == (0, "")
    answer: dict[str, Any] = json.loads(output)
    assert answer["steps"] is None
    assert [p["steps"] for p in answer["passages"][0]["places"]] == [None, None]
    code, output, _ = velocity("shards", "find", run / "set", "--text", "zzzzqqqq" * 4)
    assert output == "nothing of that length is in the set; look for less with --min-tokens\n"


def test_what_cannot_be_answered_is_said(run: Path, tmp_path: Path, small_shards: Path) -> None:
    code, _, errors = velocity("shards", "find", run / "set")
    assert (code, "which text? give either --text or --text-file" in errors) == (1, True)
    code, _, errors = velocity("shards", "find", small_shards, "--text", "x")
    assert (code, "has no index; make it with: velocity shards index" in errors) == (1, True)
    (tmp_path / "x.txt").write_bytes(b"text \xff")
    code, _, errors = velocity("shards", "find", run / "set", "--text-file", tmp_path / "x.txt")
    assert (code, "x.txt: byte 5, on line 1, is 0xff, which is not UTF-8" in errors) == (1, True)


def test_an_answer_in_words_is_bounded_and_says_what_it_leaves_out() -> None:
    place: dict[str, Any] = {
        "split": "validation",
        "token": 7,
        "source_file": "a.parquet",
        "source_row": 3,
        "url": None,
        "doc_hash": "e2",
        "steps": [],
        "num_steps": 0,
    }
    seen = place | {"split": "train", "steps": [*range(1, 21)], "num_steps": 1022}
    passage = {"text": "x" * 300, "tokens": 1, "count": 4, "places": [place, seen]}
    assert [*describe_answer({"steps": 3000, "passages": [passage]})] == [
        f"1 token, 4 places: {'x' * 200}...",
        "  token 7 of validation: e2 a.parquet row 3: in validation, which no step sees",
        f"  token 7 of train: e2 a.parquet row 3: steps {', '.join(map(str, range(1, 21)))} "
        "and 1,002 more of 1 to 3000",
        "  and 2 places more",
    ]
    [_, line, *_] = describe_answer({"steps": None, "passages": [passage]})
    assert line == "  token 7 of validation: e2 a.parquet row 3"
    [line] = describe_answer({"steps": None, "passages": []})
    assert line == "nothing of that length is in the set; look for less with --min-tokens"

"""Conditions on columns, the documents that they choose, and the stream of these documents."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import shards.files as shards_files
import shards.where.view as view
from shards.files import read_at
from shards.reader import open_shards
from shards.where.choice import Choice, choose, choose_windows
from shards.where.condition import parse_condition
from shards.where.marks import mark_rows
from shards.where.view import open_view
from tests.commands import velocity
from tests.tiny import TOKENIZER_JSON
from tests.tokenized import encode, load_plain, split_of, write_set

END = "<|endoftext|>"
TEXTS = [f"Text {n} holds {'word ' * (n * 7 % 31)}and ends." for n in range(120)]
SOURCES = ("web", "code", "books")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of several shards, with documents of three sources in turn."""
    folder = tmp_path_factory.mktemp("where") / "set"
    write_set(folder, TOKENIZER_JSON, TEXTS, END, shard_tokens=700, sources=SOURCES)
    return folder


ROWS = pa.RecordBatch.from_pydict(
    {
        "score": pa.array([1.5, 3.0, None, 4.25, float("nan")]),
        "count": pa.array([1, 2, 3, None, 5], pa.int64()),
        "places": pa.array([0, 1, 2, 3, 2**40], pa.uint64()),
        "language": pa.array(["en", "de", "en", None, "fr"]),
        "clean": pa.array([True, False, None, True, False]),
        "meta.tag": pa.array(["a", "b", "c", "d", "e'f"]),
        "warc-date": pa.array(["2019-01-01", "2020-06-01", None, "2021-01-01", "2022-01-01"]),
    }
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("score >= 3", [1, 3]),
        ("3 <= score", [1, 3]),
        ("3 > score", [0]),
        ("1 < score <= 3", [0, 1]),
        ("score != 3", [0, 3, 4]),
        ("count == 2", [1]),
        ("count >= 2.5", [2, 4]),
        ("places > -1", [0, 1, 2, 3, 4]),
        ("places == 1099511627776", [4]),
        ("count < score", [0, 1]),
        ("language == 'en'", [0, 2]),
        ("'en' != language", [1, 4]),
        ("language >= 'en'", [0, 2, 4]),
        ("language in ('en', 'fr')", [0, 2, 4]),
        ("language not in ['en']", [1, 4]),
        ("count in {1, 5.0, 7}", [0, 4]),
        ("'e' in language", [0, 1, 2]),
        ("'e' not in language", [4]),
        ("clean", [0, 3]),
        ("not clean", [1, 4]),
        ("clean == False", [1, 4]),
        # Null decides nothing, and its opposite is null.
        ("not score >= 3", [0, 4]),
        ("score is None", [2]),
        ("score is not None and count is not null", [0, 1, 4]),
        ("score >= 3 or language == 'en'", [0, 1, 2, 3]),
        ("score >= 3 and language == 'en'", []),
        ("not (score >= 3 and language == 'en')", [0, 1, 4]),
        ("clean or not clean", [0, 1, 3, 4]),
        ('meta.tag == "e\'f"', [4]),
        ("column('warc-date') >= '2020'", [1, 3, 4]),
    ],
)
def test_a_condition_is_true_for_these_rows(text: str, expected: list[int]) -> None:
    assert np.flatnonzero(mark_rows(parse_condition(text), ROWS)).tolist() == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("score >", "data.where is 'score >': invalid syntax; expected a condition such as"),
        ("", "data.where is '': invalid syntax"),
        ("score = 3", "invalid syntax"),
        ("score > 3\nimport os", "invalid syntax"),
        ("__import__('os').remove('x')", "__import__('os').remove('x') is neither a comparison"),
        ("score.__class__()", "is neither a comparison nor a column"),
        ("(lambda: 1)() == score", "is neither a column nor a value"),
        ("f'{score}' == language", "is neither a column nor a value"),
        ("score + 1 > 3", "score + 1 is neither a column nor a value"),
        ("[x for x in language]", "is neither a comparison nor a column"),
        ("score == None", "None equals nothing; ask with `is None`"),
        ("score is 3", "3 comes after `is`; expected a column, `is` and None"),
        ("1 == 1", "1 is compared with no column"),
        ("language in ()", "() is not a list of values such as ('en', 'de')"),
        ("3 in language", "3 is not a text that a column may hold"),
        ("score < 1e999", "is beyond all numbers"),
        ("count < 9223372036854775808", "is beyond 64 bits"),
        ("x" * 10_001, "data.where has 10,001 characters; expected 10,000 at most"),
        ("(" * 500 + "clean" + ")" * 500, "too many nested parentheses"),
        ("not " * 2000 + "clean", "it is nested too deep"),
        ("a" + ".a" * 4000 + " == 1", "it is nested too deep"),
        ("language == '\udc80'", "it is not valid UTF-8"),
    ],
)
def test_what_is_no_condition_is_refused_in_a_line(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r"data\.where") as caught:
        parse_condition(text)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("score == 'en'", "the column 'score' holds numbers, which cannot be compared with 'en'"),
        ("language in (1, 2)", "the column 'language' holds text, which cannot be compared with 1"),
        ("clean == 1", "the column 'clean' holds true and false, which cannot be compared with 1"),
        ("score", "the column 'score' holds numbers; expected true and false"),
        ("'a' in score", "the column 'score' holds numbers; expected text"),
        ("score < language", "the column 'language' holds text; expected numbers"),
    ],
)
def test_kinds_are_not_mixed(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match="the column") as caught:
        mark_rows(parse_condition(text), ROWS)
    assert reason in str(caught.value)


def test_a_column_that_is_not_there_is_told_with_those_that_are(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"docs\.parquet: has no column 'scor'") as caught:
        choose(open_shards(folder), "train", "scor >= 3")
    assert str(caught.value).endswith(" num_tokens, source_file, source_row, url")
    with pytest.raises(ValueError, match=r"docs\.parquet: the column 'doc_hash' holds fixed_size"):
        choose(open_shards(folder), "train", "doc_hash == 'a'")


@pytest.mark.parametrize(
    ("where", "is_chosen"),
    [
        ("source_file == 'code'", lambda n, size: n % 3 == 1),
        ("source_file != 'code'", lambda n, size: n % 3 != 1),
        ("num_tokens >= 40", lambda n, size: size >= 40),
        ("30 <= source_row < 90", lambda n, size: 30 <= n < 90),
        ("url in ('https://example.com/5', 'https://example.com/118')", lambda n, _: n in (5, 118)),
        ("num_tokens > 0", lambda n, size: True),
    ],
)
@pytest.mark.parametrize("max_gap", [0, 90, 1024])
def test_the_stream_is_that_of_a_set_of_these_documents(
    folder: Path,
    where: str,
    is_chosen: Callable[[int, int], bool],
    max_gap: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every token, and every window of every length, as in a set that was made of them alone.

    Whether its pieces are read one by one, all together, or some of them.
    """
    monkeypatch.setattr(view, "MAX_GAP_BYTES", max_gap)
    shards = open_shards(folder)
    whole = shards.stream("train")
    choice = choose(shards, "train", where)
    stream = open_view(shards, "train", choice, checks_first_reads=True)
    expected, documents, place = [], 0, 0
    for n in range(len(TEXTS)):
        if split_of(n) != "train":
            continue
        size = count_ids(n)
        if is_chosen(n, size):
            expected.append(whole.read(place, size))
            documents += 1
        place += size
    tokens = np.concatenate(expected)
    assert (choice.num_documents, choice.num_tokens) == (documents, len(tokens))
    assert stream.num_tokens == len(tokens)
    assert (stream.read(0, len(tokens)) == tokens).all()
    for count in (1, 2, 17, min(200, len(tokens))):
        starts = np.arange(len(tokens) - count + 1)[::-7]
        windows = np.lib.stride_tricks.sliding_window_view(tokens, count)
        assert (stream.windows(starts, count) == windows[::-7]).all()
    for wrong in (-1, len(tokens)):
        with pytest.raises(ValueError, match=f"asked for tokens {wrong} to {wrong + 1}; the split"):
            stream.read(wrong, 1)


def test_pieces_with_small_gaps_are_one_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many documents a window is made of; and no gap is read that is wider."""
    shards = open_shards(folder)
    choice = choose(shards, "train", "source_file == 'code'")
    stream = open_view(shards, "train", choice)
    starts = np.arange(0, choice.num_tokens - 150, 40)
    reads: list[int] = []

    def count(handle: int, out: memoryview, start: int) -> int:
        reads.append(len(out))
        return read_at(handle, out, start)

    monkeypatch.setattr(shards_files, "read_at", count)
    edges = stream.shard_starts[1:-1]
    found = {}
    for max_gap in (0, 300, 1024):
        monkeypatch.setattr(view, "MAX_GAP_BYTES", max_gap)
        reads.clear()
        windows = stream.windows(starts, 150)
        expected: list[tuple[int, int]] = []
        for window in starts.tolist():
            merged: list[tuple[int, int]] = []
            for start, stop in choice.spans(window, window + 150):
                if merged and 2 * (start - merged[-1][1]) <= max_gap:
                    start = merged.pop()[0]
                merged.append((start, stop))
            expected += merged
        assert sum(reads) == sum(2 * (stop - start) for start, stop in expected)
        # Where one reaches into the next file, it goes on there.
        more = sum(int(((edges > start) & (edges < stop)).sum()) for start, stop in expected)
        assert len(reads) == len(expected) + more
        found[max_gap] = len(expected), windows.tolist()
    assert found[0][0] > 2.4 * len(starts) > found[300][0] > found[1024][0] == len(starts)
    assert found[0][1] == found[300][1] == found[1024][1]


def test_places_of_the_choice_lead_to_the_split_and_back(folder: Path) -> None:
    choice = choose(open_shards(folder), "train", "source_file == 'web'")
    assert len(choice.starts) > 20
    places = [
        place for start, stop in choice.spans(0, choice.num_tokens) for place in range(start, stop)
    ]
    assert len(places) == choice.num_tokens
    for position, place in enumerate(places):
        assert choice.inside(place, place + 1) == (position, position + 1)
    chosen = {*places}
    for place in range(choice.all_tokens):
        start, stop = choice.inside(place, place + 1)
        assert (stop > start) == (place in chosen)
    # Only what touches is one run.
    ends = choice.starts + np.diff(choice.bounds)
    assert (choice.starts[1:] > ends[:-1]).all()


def test_neighbors_are_one_run_across_files_too(folder: Path) -> None:
    choice = choose(open_shards(folder), "train", "num_tokens > 0")
    assert len(open_shards(folder).manifest.split("train")) > 3
    assert (choice.starts.tolist(), choice.bounds.tolist()) == ([0], [0, choice.all_tokens])


def test_an_id_that_is_none_is_told_where_it_is_in_the_file(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "set"
    write_set(copy, TOKENIZER_JSON, TEXTS, END, shard_tokens=700, sources=SOURCES)
    shards = open_shards(copy)
    choice = choose(shards, "train", "source_file == 'books'")
    shard = shards.manifest.split("train")[1]
    first = shards.manifest.split("train")[0].num_tokens
    place = next(s for s in choice.starts.tolist() if s > first) - first
    content = np.fromfile(copy / shard.name, "<u2")
    content[place] = 65_000
    content.tofile(copy / shard.name)
    stream = open_view(shards, "train", choice)
    with pytest.raises(ValueError, match=f"{shard.name}: holds the id 65000 as token {place:,};"):
        stream.read(0, choice.num_tokens)


def test_a_choice_of_too_little_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.where chooses 1 of 108 documents, ") as caught:
        choose_windows(open_shards(folder), "source_row == 3", 64)
    assert "need at least 128 tokens, so choose more, or set a shorter length" in str(caught.value)
    with pytest.raises(ValueError, match="chooses 0 of 108 documents, 0 of "):
        choose_windows(open_shards(folder), "source_file == 'Web'", 64)


def test_all_of_a_split_is_one_run_without_a_condition(folder: Path) -> None:
    choice = choose(open_shards(folder), "train", None)
    assert isinstance(choice, Choice)
    assert choice.counts is None
    later = choice.all_tokens
    assert not choice.leaves_out(later, later + 5)
    some = choose(open_shards(folder), "train", "source_file == 'web'")
    end = int(some.starts[0] + some.bounds[1])
    assert some.leaves_out(end, end + 1)
    assert not some.leaves_out(end - 1, end + 1)
    assert not some.leaves_out(later, later + 5)
    assert choice.spans(5, 22) == [(5, 22)]
    assert choice.inside(5, 22) == (5, 22)


def test_a_condition_is_counted_by_split_and_source(folder: Path) -> None:
    where = "source_file != 'code' and num_tokens >= 40"
    code, said, errors = velocity("shards", "count", folder, "--where", where, "--json")
    assert code == 0, errors
    counted = json.loads(said)
    for split, amount in counted["splits"].items():
        choice = choose(open_shards(folder), split, where)
        assert amount == {
            "documents": choice.num_documents,
            "of_documents": choice.all_documents,
            "tokens": choice.num_tokens,
            "of_tokens": choice.all_tokens,
        }
    assert counted["splits"]["validation"]["of_documents"] == 12
    for name, place in zip(SOURCES, range(3), strict=True):
        amount = counted["sources"][name]
        assert amount["of_documents"] == 40
        own = [n for n in range(place, 120, 3) if count_ids(n) >= 40 and name != "code"]
        assert amount["documents"] == len(own)
        assert amount["tokens"] == sum(map(count_ids, own))
    code, said, errors = velocity("shards", "count", folder, "--where", where)
    assert code == 0, errors
    train = counted["splits"]["train"]
    lines = [line.split() for line in said.splitlines()]
    share = f"{train['tokens'] / train['of_tokens']:.2%}"
    figures = [f"{train[name]:,}" for name in ("documents", "of_documents", "tokens", "of_tokens")]
    assert ["train", *figures, share] in lines
    assert lines[-1][:3] == ["code", "0", "40"]
    code, _, errors = velocity("shards", "count", folder, "--where", "scor > 3")
    assert code == 1
    assert "has no column 'scor'" in errors
    code, _, errors = velocity("shards", "count", folder, "--where", "num_tokens >")
    assert errors.startswith("velocity: --where is 'num_tokens >': invalid syntax")


def count_ids(number: int) -> int:
    """The tokens of a document, the end token included."""
    return len(encode(load_plain(TOKENIZER_JSON), TEXTS[number])) + 1


@pytest.mark.parametrize("is_twice", [False, True])
def test_a_strange_column_is_refused(tmp_path: Path, is_twice: bool) -> None:
    write_set(tmp_path / "set", TOKENIZER_JSON, TEXTS[:30], END)
    shards = open_shards(tmp_path / "set")
    path = tmp_path / "set" / shards.manifest.split("train")[0].sidecar
    table = pq.read_table(path)
    column = pa.array([1] * len(table)) if is_twice else pa.array([[1, 2]] * len(table))
    for _ in range(1 + is_twice):
        table = table.append_column("tags", column)
    pq.write_table(table, path)
    assert choose(shards, "train", "num_tokens > 0").num_documents == 27
    with pytest.raises(ValueError, match=r"docs\.parquet: has no column 'tags'; those that a cond"):
        choose(shards, "train", "tags == 1")

"""The index of a set: what it finds is what a plain search finds, and damage is told."""

import errno
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.disk.json_files import SEAL, seal_json
from shards.disk.layout import INDEX, index_folder, index_path, list_arrays
from shards.edit.remove import Wanted, find_wanted, remove_documents
from shards.format import SPLITS
from shards.index import array, build
from shards.index.array import (
    count_code_bytes,
    digest_array,
    make_codes,
    order_suffixes,
    write_array,
)
from shards.index.build import build_index
from shards.index.contents import read_index, write_index
from shards.index.passages import Finder, Passage, Wish
from shards.index.search import WINDOW, SetIndex, open_index
from shards.inspect.verify import verify_shards
from shards.reader import Shards, open_shards
from tests.commands import velocity
from tests.texts import make_texts
from tests.tiny import TOKENIZER_JSON
from tests.tokenized import write_set
from tests.vocabularies import build as build_vocabulary

# Few tokens to an array, so that a shard of 4,000 has several.
ARRAY_TOKENS = 1500
# Texts of the same sentence, a copy of another one, and one longer than an array.
REPEATED = "the same words again and again " * 20
TEXTS = [*make_texts(60), REPEATED, REPEATED, make_texts(60)[7], "long " * 1200, "end"]


def quiet(line: str) -> None:
    """What the command would say."""


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of uint16 and its index."""
    folder = tmp_path_factory.mktemp("indexed") / "set"
    write_set(folder, TOKENIZER_JSON, TEXTS, "<|endoftext|>")
    build_index(folder, quiet, array_tokens=ARRAY_TOKENS)
    return folder


@pytest.fixture
def copy(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "copy"))


def read_splits(shards: Shards) -> dict[str, list[int]]:
    """All ids of each split."""
    streams = {split: shards.stream(split) for split in SPLITS}
    return {split: stream.read(0, stream.num_tokens).tolist() for split, stream in streams.items()}


def spell(ids: list[int]) -> str:
    """A character for each id."""
    return "".join(map(chr, ids))


def search_plainly(splits: dict[str, list[int]], span: list[int]) -> set[tuple[str, int]]:
    """Every place of a span of ids."""
    places = set()
    wanted = spell(span)
    for split, ids in splits.items():
        text = spell(ids)
        at = text.find(wanted)
        while at >= 0:
            places.add((split, at))
            at = text.find(wanted, at + 1)
    return places


def make_spans(splits: dict[str, list[int]], end: int, count: int) -> Iterator[list[int]]:
    """Spans of the set, and others like them, without tokens that end a document."""
    generator = random.Random(0)
    for number in range(count):
        ids = splits["validation" if number % 5 == 0 else "train"]
        start, size = generator.randrange(len(ids)), generator.choice([1, 2, 3, 5, 9, 70, 200])
        span = ids[start : start + size]
        if number % 3 == 0:
            # Often the first id of what is compared next.
            place = generator.choice([generator.randrange(len(span)), WINDOW])
            span[min(place, len(span) - 1)] = generator.choice(ids)
        if span and end not in span:
            yield span


def find_all(index: SetIndex, spans: list[list[int]]) -> list[set[tuple[str, int]]]:
    """Every place of each span, as the index has them."""
    sizes = np.array([*map(len, spans)])
    found = index.find(np.concatenate(spans), np.cumsum(sizes) - sizes, sizes)
    places = [matches.places(1 << 20) for matches in found]
    assert [matches.count for matches in found] == [len(set(some)) for some in places]
    return [set(some) for some in places]


def check_set(folder: Path, num_spans: int = 120) -> None:
    """That the index of a set finds what a plain search finds."""
    shards = open_shards(folder)
    splits, index = read_splits(shards), open_index(shards)
    end = shards.manifest.end_of_text
    spans = [*make_spans(splits, end, num_spans)]
    assert len(spans) > num_spans // 2
    expected = [search_plainly(splits, span) for span in spans]
    assert find_all(index, spans) == expected
    assert 0 < len([*filter(None, expected)]) < len(spans)
    row = [i for span in spans[:12] for i in span][:150]
    longest = index.measure_matches(np.array(row), np.arange(len(row))).tolist()
    for start in range(0, len(row), 7):
        size = longest[start]
        assert size == 0 or search_plainly(splits, row[start : start + size])
        longer = row[start : start + size + 1]
        assert len(longer) == size or not search_plainly(splits, longer)


@pytest.mark.parametrize("vocab_size", [5, 300, 70_000, 1 << 25])
def test_suffixes_are_in_the_order_of_their_ids(vocab_size: int) -> None:
    generator = np.random.default_rng(vocab_size)
    dtype = "<u2" if vocab_size <= 1 << 16 else "<u4"
    tokens = generator.choice(generator.integers(0, vocab_size, 6), 500).astype(dtype)
    tokens[200:260] = vocab_size - 1  # As a removed document leaves it.
    order = order_suffixes(make_codes(tokens, vocab_size), count_code_bytes(vocab_size))
    ids = tokens.tolist()
    assert order.tolist() == sorted(range(500), key=lambda place: ids[place:])


def test_all_places_of_a_span_are_found(pristine: Path) -> None:
    assert len(open_index(open_shards(pristine)).parts) > 8
    check_set(pristine)


def test_a_set_of_uint32_with_a_token_before_each_document(tmp_path: Path) -> None:
    vocabulary = build_vocabulary("llama3")
    write_set(tmp_path / "set", vocabulary, TEXTS, "<|end_of_text|>", "<|begin_of_text|>")
    build_index(tmp_path / "set", quiet, workers=2, array_tokens=ARRAY_TOKENS)
    check_set(tmp_path / "set", 60)


def test_nothing_is_found_across_two_documents(pristine: Path) -> None:
    finder = Finder(open_shards(pristine))
    [first, second] = [TEXTS[20].split()[-3:], TEXTS[21].split()[:3]]
    text = " ".join(first + second)
    found = finder.find(text, Wish(min_tokens=1))
    assert found
    assert all(passage.stop - passage.start < len(text) for passage in found)


def show(text: str, passages: list[Passage]) -> list[tuple[str, int, list[str | None]]]:
    """Each passage's text, how often it is there, and the URLs of its places."""
    return [
        (text[p.start : p.stop], p.count, [place.document.url for place in p.places])
        for p in passages
    ]


def test_the_passages_of_a_text_lead_to_its_documents(pristine: Path) -> None:
    finder = Finder(open_shards(pristine))
    document = next(n for n, text in enumerate(TEXTS) if len(text.split()) > 40 and n != 7)
    words = TEXTS[document].split(" ")
    # A whole passage of a document, without the space that is before it there.
    quoted = " ".join(words[10:30])
    text = f"{quoted} zzzz qqqq {REPEATED[:60].strip()} zzzz"
    found = show(text, finder.find(text, Wish(12, places=100)))
    url = f"https://example.com/{document}"
    assert found[0] == (f"{quoted} ", 1, [url]) or found[0] == (quoted, 1, [url])
    repeated = next(entry for entry in found if "the same words" in entry[0])
    numbers = {TEXTS.index(REPEATED), TEXTS.index(REPEATED) + 1}
    assert set(repeated[2]) == {f"https://example.com/{number}" for number in numbers}
    assert repeated[1] > 2
    # Only what was chosen, though a token may reach beyond it.
    start = text.index("zzzz") - 20
    [chosen, *_] = finder.find(text, Wish(min_tokens=2), start, start + 12)
    assert start - 12 < chosen.start <= start
    assert start < chosen.stop < start + 24


def test_a_text_that_is_not_there_gives_nothing(pristine: Path) -> None:
    finder = Finder(open_shards(pristine))
    assert finder.find("qqzzxx jjvvkk", Wish(min_tokens=4)) == []
    assert finder.find("", Wish()) == []
    with pytest.raises(ValueError, match=r"the text has 18,800 tokens; expected at most 8,192"):
        finder.find("x y " * 4700, Wish())
    with pytest.raises(ValueError, match=r"the text has 300,000 characters; expected at most"):
        finder.find("x" * 300_000, Wish())
    with pytest.raises(ValueError, match="--places is 0; expected 1 to 1,000"):
        Wish(places=0)


def test_a_new_version_keeps_the_arrays_of_what_it_keeps(copy: Path) -> None:
    shards = open_shards(copy)
    gone = next(n for n, text in enumerate(TEXTS) if len(text) > 300 and n < 50 and n != 7)
    found = find_wanted(shards, Wanted(frozenset({f"https://example.com/{gone}"})))
    finder = Finder(shards)
    words = TEXTS[gone].split(" ")
    passage = " ".join(words[1 : len(words) // 2])
    assert finder.find(passage, Wish())[0].count == 1
    before = {path.name: path.stat().st_mtime_ns for path in list_arrays(copy)}
    remove_documents(shards, found, keeps_places=True)
    changed = found[0].shard.name
    assert not [path for path in list_arrays(copy) if path.name.startswith(f"{changed}.")]
    with pytest.raises(ValueError, match=r"is for the version \w{12} of the set, which is \w{12}"):
        open_index(open_shards(copy))
    build_index(copy, quiet, array_tokens=ARRAY_TOKENS)
    after = {path.name: path.stat().st_mtime_ns for path in list_arrays(copy)}
    kept = before.keys() & after.keys()
    assert len(kept) == len([name for name in before if not name.startswith(f"{changed}.")]) > 0
    assert all(before[name] == after[name] for name in kept)
    check_set(copy, 20)
    left = Finder(open_shards(copy)).find(passage, Wish(min_tokens=1))
    assert all(p.stop - p.start < len(passage) for p in left)


class Killed(BaseException):
    """The process ends here."""


def test_a_kill_leaves_arrays_that_are_whole_and_the_rest_is_made(
    pristine: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every call between which the state of the disk differs."""
    expected = {path.name: path.read_bytes() for path in index_folder(pristine).iterdir()}
    calls = 0
    moment = 0

    def wrap(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == moment:
                raise Killed
            return call(*arguments, **options)

        return counted

    for name in ("replace", "fsync"):
        monkeypatch.setattr(os, name, wrap(getattr(os, name)))
    shutil.rmtree(index_folder(copy))
    is_done = False
    while not is_done:
        calls, moment = 0, moment + 7
        try:
            build_index(copy, quiet, array_tokens=ARRAY_TOKENS)
            is_done = True
        except Killed:
            for path in list_arrays(copy):
                assert path.read_bytes() == expected[path.name]
            assert not index_path(copy).exists()
        if not is_done and moment == 7:
            with pytest.raises(ValueError, match="has no index; make it with: velocity shards"):
                open_index(open_shards(copy))
    assert moment > 14
    assert {p.name: p.read_bytes() for p in index_folder(copy).iterdir()} == expected


def test_a_damaged_array_is_told(copy: Path) -> None:
    path = max(list_arrays(copy), key=lambda path: path.stat().st_size)
    content = path.read_bytes()
    # In the places, in the checksums, and cut.
    for at, message in ((40, "damaged in its block 0"), (len(content) - 2, "its checksums are")):
        damaged = bytearray(content)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=message):
            check_set(copy)
    path.write_bytes(content[:-9])
    with pytest.raises(ValueError, match=r"its checksums are not those of index\.json"):
        check_set(copy)
    path.unlink()
    with pytest.raises(ValueError, match=r"cannot be read \(No such file"):
        check_set(copy)
    build_index(copy, quiet, array_tokens=ARRAY_TOKENS)
    assert path.read_bytes() == content


def forge(
    folder: Path, change: Callable[[np.ndarray[Any, Any]], object], name: str | None = None
) -> Path:
    """Change the places of an array as somebody could who then made all checksums fit."""
    shards = open_shards(folder)
    arrays = read_index(folder, shards.manifest)
    entry = max(arrays, key=lambda entry: (entry.path(folder).name == name, entry.num_tokens))
    places = np.fromfile(entry.path(folder), "<u4", entry.num_tokens)
    change(places)
    write_array(entry.path(folder), places.astype(np.int64))
    digests = digest_array(entry.path(folder), entry.num_tokens)
    assert digests is not None
    write_index(folder, shards.manifest, arrays | {entry: digests})
    return entry.path(folder)


def test_places_outside_of_an_array_are_told(copy: Path) -> None:
    path = forge(copy, lambda places: places.fill(2**32 - 1))
    with pytest.raises(ValueError, match=rf"{path.name}: has places outside of its [\d,]+ tokens"):
        check_set(copy)
    code, _, errors = velocity("shards", "find", copy, "--text", TEXTS[0])
    assert (code, errors.count("\n")) == (1, 1)


def test_a_place_that_does_not_hold_the_span_is_never_given(copy: Path) -> None:
    """An array that is in no order but where bisection looks."""
    shards = open_shards(copy)
    end = shards.manifest.end_of_text
    ids = shards.stream("train").read(0, 40).tolist()
    wanted = np.array([ids[0]])
    one = np.array([1])
    part, low, high = open_index(shards).find(wanted, one - 1, one)[0].parts[0]
    assert high - low > 3
    assert ids[0] != end
    path = part.file.path

    def swap(places: np.ndarray[Any, Any]) -> None:
        """A place in the middle of the span's becomes one that holds another token."""
        places[low + 1] = places[0 if low else -1]

    forge(copy, swap, path.name)
    [matches] = open_index(open_shards(copy)).find(wanted, one - 1, one)
    assert matches.count > 0
    with pytest.raises(ValueError, match=f"{path.name}: its places are not in order; what is"):
        matches.places(1000)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_or_a_link_in_the_place_of_an_array(copy: Path, tmp_path: Path) -> None:
    path = max(list_arrays(copy), key=lambda path: path.stat().st_size)
    content = path.read_bytes()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match=f"{path.name}: cannot be read"):
        check_set(copy)
    assert f"{INDEX}/{path.name}" in [name for name, fault in verify_shards(copy) if fault]
    build_index(copy, quiet, array_tokens=ARRAY_TOKENS)
    assert path.read_bytes() == content
    # Through a link it is read, but nothing is written or deleted through one.
    other = tmp_path / "elsewhere"
    path.rename(other)
    path.symlink_to(other)
    check_set(copy, 10)
    with pytest.raises(ValueError, match="is a symbolic link to"):
        build_index(copy, quiet, array_tokens=ARRAY_TOKENS)
    assert other.read_bytes() == content


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"num_tokens": 2**62}, "do not follow each other"),
        ({"num_tokens": 2**63}, r"arrays\[0\].num_tokens is 9223372036854775808; expected a whole"),
        ({"num_tokens": 0}, "do not follow each other"),
        ({"num_tokens": -1}, r"arrays\[0\].num_tokens is -1; expected a whole number"),
        ({"first": 2**62}, "do not follow each other"),
        (
            {"shard": "../../etc/passwd"},
            "its arrays over ../../etc/passwd do not follow each other",
        ),
        ({"sha256": "../x"}, r"arrays\[0\].sha256 is '../x'; expected a sha256"),
        ([], "its arrays cover 0 tokens of"),
        (None, "do not follow each other"),
    ],
)
def test_an_index_that_was_made_to_lie_is_told(
    copy: Path, change: dict[str, object] | list[object] | None, told: str
) -> None:
    raw = json.loads(index_path(copy).read_text())
    del raw[SEAL]
    if isinstance(change, list):
        raw["arrays"] = change
    elif change is None:  # As many of them as one likes.
        raw["arrays"].insert(0, raw["arrays"][0] | {"num_tokens": 0})
    else:
        raw["arrays"][0] |= change
    index_path(copy).write_text(seal_json(raw))
    with pytest.raises(ValueError, match=rf"index\.json: .*{told}.*; make it with: velocity"):
        open_index(open_shards(copy))
    [fault] = [fault for name, fault in verify_shards(copy) if name == f"{INDEX}/index.json"]
    assert fault


def test_an_index_of_another_release_is_made_anew(copy: Path) -> None:
    raw = json.loads(index_path(copy).read_text())
    del raw[SEAL]
    index_path(copy).write_text(seal_json(raw | {"schema_version": 1}))
    before = {path: path.stat().st_mtime_ns for path in list_arrays(copy)}
    with pytest.raises(ValueError, match="schema_version is 1; this velocity reads 2, so make it"):
        open_index(open_shards(copy))
    build_index(copy, quiet, array_tokens=ARRAY_TOKENS)
    check_set(copy, 10)
    assert {path: path.stat().st_mtime_ns for path in list_arrays(copy)} == before


def test_a_full_disk_leaves_no_half_of_an_array(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(index_folder(copy))

    def fail(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(array, "sync_file", lambda file: fail(file.fileno()))
    with pytest.raises(OSError, match=r"No space left on device: '.*\.sa'"):
        build_index(copy, quiet, array_tokens=ARRAY_TOKENS)
    assert [*index_folder(copy).iterdir()] == []


def test_an_edited_index_is_told(copy: Path) -> None:
    path = index_path(copy)
    path.write_text(path.read_text().replace('"first": 0', '"first": 1', 1))
    with pytest.raises(ValueError, match="was edited or damaged; make it with"):
        open_index(open_shards(copy))
    path.write_text(json.dumps({"schema_version": 1}))
    with pytest.raises(ValueError, match="was edited or damaged"):
        open_index(open_shards(copy))


def test_a_damaged_shard_is_not_indexed(copy: Path) -> None:
    shutil.rmtree(index_folder(copy))
    path = copy / open_shards(copy).manifest.shards[0].name
    damaged = bytearray(path.read_bytes())
    damaged[10] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="damaged in tokens 0 to"):
        build_index(copy, quiet)
    assert not index_path(copy).exists()


def test_what_it_takes_is_said_and_refused_where_it_is_not_there(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(index_folder(copy))
    code, _, errors = velocity("shards", "index", copy, "--workers", "0")
    assert (code, "--workers is 0; expected 1 to 256" in errors) == (1, True)
    monkeypatch.setattr(build, "find_memory", lambda: (1 << 30, 1 << 20))
    code, _, errors = velocity("shards", "index", copy, "--workers", "2")
    assert code == 1
    assert "of memory is needed, and 1.05 MB is free on this machine; use fewer" in errors
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    code, _, errors = velocity("shards", "index", copy)
    assert "an index needs pydivsufsort: pip install 'velocitylm[index]'" in errors
    monkeypatch.undo()
    code, _, errors = velocity("shards", "index", copy, "--workers", "2")
    assert code == 0
    assert "; 0 are there" in errors
    assert "of disk is needed in" in errors
    assert "is complete" in errors
    code, _, errors = velocity("shards", "index", copy)
    assert "of disk is needed" not in errors
    check_set(copy, 20)

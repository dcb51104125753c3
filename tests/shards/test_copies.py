"""Near copies of a finished set: counted, and looked up by who was kept for whom."""

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from shards.inspect.stats import measure_set
from shards.near.clusters import ClusterFinder
from shards.near.signatures import NearSettings, sign_texts
from shards.near.texts import TokenText
from shards.reader import open_shards
from shards.tokenizer import load_tokenizer, read_spelling
from tests.commands import velocity
from tests.planted import plant_copies
from tests.texts import make_texts, prepare_quietly, read_texts, write_parquet


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets of the same texts: plain/ with all of them, near/ without copies."""
    folder = tmp_path_factory.mktemp("sets")
    texts: list[str | None] = [*plant_copies(100, seed=2), *make_texts(30)]
    write_parquet(folder / "a.parquet", [*texts, *texts[:7]])
    for name, dedup in (("plain", None), ("near", "near")):
        options = {"validation_fraction": "0.3", "dedup": dedup}
        prepare_quietly(folder / name, folder / "a.parquet", **options)
    return folder


def test_tokens_become_the_texts_that_they_were_made_from(folder: Path) -> None:
    tokenizer = load_tokenizer(folder / "plain/tokenizer.json")
    texts = ["", *make_texts(50, seed=8), "\u0130 \u00a0 x\U0001f642"]
    ids = [[*tokenizer.encode(text).ids, 50256] for text in texts]
    tokens = np.array([i for found in ids for i in found], np.uint16)
    spelling = read_spelling(tokenizer, 50256)
    spelled = TokenText(spelling).spell(tokens, np.cumsum([len(i) for i in ids]))
    assert spelled.to_pylist() == texts
    spelled.validate(full=True)


def test_near_copies_of_a_finished_set_are_counted(folder: Path, tmp_path: Path) -> None:
    """The same as from the texts themselves, train first, and none are left after --dedup near."""
    found = read_texts(folder / "plain")
    texts = list(found.values())
    signatures = sign_texts(pa.array(texts, pa.large_string()), NearSettings())
    finder = ClusterFinder(tmp_path, len(texts), NearSettings())
    with finder:
        finder.add(signatures)
    kept = finder.find().find_kept(np.arange(len(texts))).tolist()
    splits = [split for split, _, _ in found]
    copies = [place for place, first in enumerate(kept) if place != first]
    shards = open_shards(folder / "plain")
    tokenizer = load_tokenizer(folder / "plain/tokenizer.json")
    counted = measure_set(shards, near_duplicates=True).near_duplicates
    assert counted is not None
    assert len(copies) > 50
    assert counted.documents == len(copies)
    assert counted.tokens == sum(len(tokenizer.encode(texts[n]).ids) + 1 for n in copies)
    assert counted.clusters == len({kept[n] for n in copies})
    assert counted.largest == max(Counter(kept).values())
    assert counted.validation_documents_near_train == sum(
        splits[place] == "validation" and splits[first] == "train"
        for place, first in enumerate(kept)
    )
    left = measure_set(open_shards(folder / "near"), near_duplicates=True).near_duplicates
    assert left is not None
    assert left.documents <= 2  # A first one that is near another cluster's copy may be left.


def test_the_command_says_it(folder: Path) -> None:
    code, out, _ = velocity("shards", "stats", folder / "plain", "--near-duplicates")
    assert code == 0
    assert "near copies: " in out
    code, out, _ = velocity("shards", "stats", folder / "plain", "--json")
    assert json.loads(out)["near_duplicates"] is None


def test_copies_are_shown_with_what_was_kept(folder: Path) -> None:
    code, out, _ = velocity("shards", "show", folder / "near", "--copies", "--json", "--count", 999)
    assert code == 0
    pairs = [json.loads(line) for line in out.splitlines()]
    manifest = json.loads((folder / "near/manifest.json").read_text())
    dropped = manifest["audit"]["dropped"]
    reasons = Counter(pair["reason"] for pair in pairs)
    assert reasons == {key: dropped[key] for key in ("duplicate", "near-duplicate")}
    kept = {row for _, _, row in read_texts(folder / "near")}
    for pair in pairs:
        assert pair["kept"]["source_row"] in kept
        assert pair["dropped"]["source_row"] not in kept
        assert pair["kept"]["source_row"] < pair["dropped"]["source_row"]
        assert 0.4 < pair["similarity"] <= 1
    pair = random.Random(0).choice(pairs)
    kept_url = pair["kept"]["url"]
    cluster = [other for other in pairs if other["kept"]["url"] == kept_url]
    for key in ("dropped", "kept"):
        for option, field in (("--url", "url"), ("--doc-hash", "doc_hash")):
            arguments = ("--copies", "--json", option, pair[key][field])
            _, out, _ = velocity("shards", "show", folder / "near", *arguments)
            found = [json.loads(line) for line in out.splitlines()]
            assert [other for other in found if other["kept"]["url"] == kept_url] == cluster
    _, out, _ = velocity("shards", "show", folder / "near", "--copies", "--count", "2")
    assert len(out.splitlines()) == 2
    first = pairs[0]
    assert out.splitlines()[0] == (
        f"{first['reason']} ({first['similarity']:.2f}): a.parquet, row "
        f"{first['dropped']['source_row']}, {first['dropped']['url']}; kept: a.parquet, row "
        f"{first['kept']['source_row']}, {first['kept']['url']}"
    )


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("plain", [], "has no list of copies: velocity prep --dedup near makes it"),
        ("near", ["--url", "https://nowhere"], "no document near the one with the URL"),
        (
            "near",
            ["--document", "3"],
            "--copies goes with --url or --doc-hash, not with --document",
        ),
        ("near", ["--start", "5"], "--copies goes with --url or --doc-hash, not with --document"),
        ("near", ["--count", "0"], "--count is 0; expected a number from 1 to 100,000"),
    ],
)
def test_where_nothing_can_be_shown_it_is_one_line(
    folder: Path, name: str, options: list[str], expected: str
) -> None:
    code, _, errors = velocity("shards", "show", folder / name, "--copies", *options)
    assert code == 1
    assert expected in errors
    assert errors.count("\n") == 1


def test_a_damaged_list_is_one_line(folder: Path, tmp_path: Path) -> None:
    path = folder / "near/copies-00000.parquet"
    content = path.read_bytes()
    try:
        for damage in (content[:100], b"", content[:-50] + bytes(50)):
            path.write_bytes(damage)
            code, _, errors = velocity("shards", "show", folder / "near", "--copies")
            assert code == 1
            assert "copies-00000.parquet: cannot be read as parquet" in errors
            assert errors.count("\n") == 1
    finally:
        path.write_bytes(content)

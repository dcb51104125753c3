"""A .json that is one list of objects: the items that json.load finds, one at a time."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from prep.readers.documents import Piece
from prep.readers.formats import read_documents, split_file
from tests.packings import pack
from tests.reading import read, read_skipping

PARTS = [
    '"',
    "\\",
    "[",
    "]",
    "{",
    "}",
    ",",
    ":",
    "\n",
    "a",
    "é",
    "你",
    "\U0001f600",
    "\0",
    "\\u",
    " ",
]


def make_items(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Objects with text of whatever JSON has to escape, and with others inside them."""
    generator = random.Random(seed)

    def make_text() -> str:
        return "".join(generator.choices(PARTS, k=generator.randrange(30)))

    def make_value(depth: int) -> Any:
        kind = generator.randrange(6 if depth else 4)
        if kind == 4:
            return [make_value(depth - 1) for _ in range(generator.randrange(4))]
        if kind == 5:
            return {make_text(): make_value(depth - 1) for _ in range(generator.randrange(4))}
        return [make_text(), generator.random(), None, True][kind]

    return [
        {"more": make_value(3), "content": make_text(), "url": make_text(), make_text(): 1}
        for _ in range(count)
    ]


@pytest.mark.parametrize("chunk_bytes", [1, 2, 7, 100, 1 << 22])
@pytest.mark.parametrize(
    "style",
    [
        {},
        {"indent": 2},
        {"ensure_ascii": False},
        {"separators": (",", ":"), "ensure_ascii": False},
        {"separators": (",\n", ":")},
    ],
)
def test_the_items_are_those_of_json_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, style: dict[str, Any], chunk_bytes: int
) -> None:
    monkeypatch.setattr("prep.readers.items._CHUNK_BYTES", chunk_bytes)
    items = make_items(60, seed=chunk_bytes)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(items, **style) + "\n", encoding="utf-8")
    found = read(path)
    loaded = json.loads(path.read_text(encoding="utf-8"))
    assert found.texts == [item["content"] for item in loaded]
    assert found.urls == [item["url"] for item in loaded]
    assert found.rows == list(range(60))


@pytest.mark.parametrize("data", [b"[]", b" [ \n ]\n\n", b"\xef\xbb\xbf[\r\n]", b"[\n\n\n]"])
def test_an_empty_list_has_no_documents(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(data)
    assert read(path).texts == []


def test_lists_of_several_thousand_and_their_batches(tmp_path: Path) -> None:
    items = [{"content": f"text {i}", "n": i} for i in range(2500)]
    path = tmp_path / "a.json.gz"
    path.write_bytes(pack(json.dumps(items).encode(), path.name))
    batches = list(read_documents(Piece(str(path), "a"), "content", columns=("n",)))
    assert [len(batch.rows) for batch in batches] == [1000, 1000, 500]
    assert batches[2].columns["n"].tolist() == list(range(2000, 2500))
    assert batches[1].name(4) == f"{path}, item 1004"


def test_a_list_is_not_cut_and_lines_are(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    lines = "".join(f'{{"content": "line {i}"}}\n' for i in range(100))
    path.write_text(lines)
    assert len(split_file(path, "a", 500)) == 5
    path.write_text("[" + lines.strip().replace("\n", ",\n") + "]")
    assert split_file(path, "a", 500) == [Piece(str(path), "a")]
    assert read(path).texts == [f"line {i}" for i in range(100)]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (
            '{"content": oops}',
            r"item 1: not JSON \(Expecting value at character \d+\); each item m",
        ),
        (
            "",
            r"item 1: not JSON \(Expecting value at character 2\); each item must be one JSON obj",
        ),
        ("5", "item 1: holds a number; each item must be one JSON object"),
        ('"a, [b"', "item 1: holds text; each item must be one JSON object"),
        ('["content"]', "item 1: holds a list; each item must be one JSON object"),
        ('{"content": "a"} {"content": "b"}', r"item 1: not JSON \(Extra data"),
        ('{"text": "a"}', "item 1: no key 'content'; the keys are text; name the right one with"),
        ('{"content": 5}', "item 1: 'content' holds a number; expected text"),
        ('{"content": [}]}', r"item 1: not JSON \(Expecting value"),
        ("}", r"item 1: not JSON \(Expecting value"),
        ("[" * 5000 + "]" * 5000, "item 1: JSON that cannot be read"),
    ],
)
def test_a_bad_item_is_named_and_costs_only_itself(tmp_path: Path, item: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"content": "before"}, ' + item + ', {"content": "after"}]')
    with pytest.raises(ValueError, match=f"a.json, {message}"):
        read(path)
    texts, bad = read_skipping(path)
    assert texts == ["before", "after"]
    assert list(bad) == [1]


def test_an_item_that_is_too_large_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("items", "batches"):
        monkeypatch.setattr(f"prep.readers.{module}.MAX_DOCUMENT_BYTES", 1 << 20)
    path = tmp_path / "a.json"
    for chunk_bytes in (1 << 10, 1 << 22):
        monkeypatch.setattr("prep.readers.items._CHUNK_BYTES", chunk_bytes)
        items = [{"content": text} for text in ("a", 'long " ' * (1 << 19), "b")]
        path.write_text(json.dumps(items))
        with pytest.raises(ValueError, match=r"item 1: a document of more than 1 MiB; each item"):
            read(path)
        texts, bad = read_skipping(path)
        assert (texts, list(bad)) == (["a", "b"], [1])


@pytest.mark.parametrize("chunk_bytes", [3, 1 << 22])
def test_a_list_cut_at_any_byte_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    monkeypatch.setattr("prep.readers.items._CHUNK_BYTES", chunk_bytes)
    path = tmp_path / "a.json"
    data = json.dumps([{"content": 'a "b" \\', "n": [1, {}]}] * 2).encode()
    for size in range(1, len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match=r"a.json: damaged, .*the list does not end; it was r"):
            read_skipping(path)
    for end in (b"]", b"x", b",", b' {"content": "c"}', b" []"):
        path.write_bytes(data + end)
        with pytest.raises(ValueError, match=r"a.json: damaged, .*\(more follows the end of its l"):
            read_skipping(path)


def test_invalid_text_in_a_list_is_replaced_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'[{"content": "bad \xff"}, {"content": "\\ud83d"}, {"content": "ok"}]')
    found = read(path)
    assert found.texts == ["bad \ufffd", "\ufffd", "ok"]
    assert found.repaired == [True, True, False]
    path.write_bytes('[{"content": "wide"}]'.encode("utf-16-le") * 200)
    with pytest.raises(ValueError, match=r"a.json: is in UTF-16LE"):
        read(path)


def test_a_key_that_no_item_has_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"content": "a", "lang": "en"}, {"content": "b", "lang": "de"}]')
    assert read(path, columns=("lang",)).texts == ["a", "b"]
    with pytest.raises(
        ValueError, match=r"no key 'langg' in any item; the keys are content, lang;"
    ):
        read(path, columns=("langg",))

"""Labels of a set of chats: every token's, in any window, across documents and shards."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards.chat.labels import BEGIN, LOSS, REJECTED, open_labels
from shards.disk.durable import hash_file
from shards.format import read_manifest
from shards.reader import open_shards
from shards.rows import SidecarError, read_rows
from shards.sidecar import is_padding
from tests.chats import Chat, write_chats
from tests.manifests import edit_manifest
from tests.tiny import TOKENIZER_JSON
from tests.tokenized import write_set

ROW = 16


def make_chats(num_chats: int = 40, seed: int = 0, pairs: bool = False) -> list[Chat]:
    """Chats of random lengths and spans: some touch each other, some reach the last token."""
    random = np.random.default_rng(seed)
    chats = []
    for _ in range(num_chats):
        size = int(random.integers(2, ROW + 1))
        edges = np.sort(random.choice(size + 1, 2 * int(random.integers(0, size // 2 + 1)), False))
        spans = [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
        if size > 5 and not spans:
            spans = [(1, 3), (3, size)]
        ids = (*random.integers(1, 300, size - 1).tolist(), 0)
        half = int(random.integers(1, size)) if pairs else None
        chats.append(Chat(ids, tuple(spans), half))
    return chats


def label_by_loop(folder: Path, chats: list[Chat]) -> list[int]:
    """The label of every token of the split, from the documents in the order of the rows."""
    bits: list[int] = []
    for shard in read_manifest(folder).split("train"):
        for rows in read_rows(folder, shard, ["num_tokens", "source_file", "source_row"]):
            padding = is_padding(rows)
            for place, row in enumerate(rows.to_pylist()):
                here = [0] * row["num_tokens"]
                if not padding[place]:
                    chat = chats[row["source_row"]]
                    assert row["num_tokens"] == len(chat.ids)
                    for begin, end in chat.spans:
                        for token in range(begin, end):
                            here[token] |= LOSS
                    if chat.rejected_start is not None:
                        here[chat.rejected_start] |= BEGIN
                        for token in range(chat.rejected_start, len(here)):
                            here[token] |= REJECTED
                here[0] |= BEGIN
                bits += here
    return bits


@pytest.mark.parametrize("pairs", [False, True])
def test_labels_are_those_of_each_document_in_any_window(tmp_path: Path, pairs: bool) -> None:
    chats = make_chats(pairs=pairs)
    manifest = write_chats(tmp_path / "chats", chats, ROW, shard_tokens=6 * ROW)
    assert len(manifest.shards) > 3
    expected = np.array(label_by_loop(tmp_path / "chats", chats), np.uint8)
    labels = open_labels(open_shards(tmp_path / "chats"), "train")
    assert labels.num_tokens == len(expected) == manifest.num_tokens("train")
    for size in (1, 3, ROW, ROW + 1, len(expected)):
        places = np.arange(len(expected) - size + 1)
        windows = np.lib.stride_tricks.sliding_window_view(expected, size)
        np.testing.assert_array_equal(labels.read(places, size), windows)
        shuffled = np.random.default_rng(1).permutation(places)
        np.testing.assert_array_equal(labels.read(shuffled, size), windows[shuffled])
    assert (expected & LOSS).sum() == manifest.content["chat"]["loss_tokens"]
    for wrong in (-1, len(expected) - 3):
        with pytest.raises(ValueError, match=rf"asked for the labels of tokens {wrong} to"):
            labels.read(np.array([0, wrong]), 4)
    empty = open_labels(open_shards(tmp_path / "chats"), "validation")
    assert empty.read(np.empty(0, np.int64), ROW).shape == (0, ROW)


def test_a_set_of_chats_has_a_schema_version_of_its_own(tmp_path: Path) -> None:
    chats = make_chats()
    manifest = write_chats(tmp_path / "chats", chats, ROW)
    num_tokens = sum(len(chat.ids) for chat in chats)
    loss = sum(end - begin for chat in chats for begin, end in chat.spans)
    assert manifest.chat is not None
    assert manifest.chat["kind"] == "conversations"
    assert manifest.chat["loss_tokens"] == loss
    assert manifest.chat["other_tokens"] == num_tokens - loss
    assert sum(shard.loss_tokens or 0 for shard in manifest.shards) == loss
    assert '"schema_version": 4' in (tmp_path / "chats" / "manifest.json").read_text()
    write_set(tmp_path / "texts", TOKENIZER_JSON, ["one", "two"], "<|endoftext|>")
    with pytest.raises(ValueError, match="is not a set of chats, so no token of it is marked"):
        open_labels(open_shards(tmp_path / "texts"), "train")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("chat", "loss_tokens"), 1, "content.chat does not have the loss_tokens and other_tokens"),
        (("chat", "end_of_turn"), 302, "end_of_turn is 302, and the tokenizer has 302 ids"),
        (("chat", "end_of_turn"), -1, "end_of_turn"),
        (("chat", "end_of_turn"), "<|im_end|>", "content.chat.end_of_turn"),
        (("chat", "tokens"), {"eos_token": 5}, "content.chat.tokens"),
        (("chat", "kind"), "talks", "content.chat.kind is talks; expected conversations or"),
        (("shards", 0, "loss_tokens"), 10**6, "has more loss_tokens than tokens"),
        (("shards", 0, "loss_tokens"), None, "has no loss_tokens"),
        (("chat",), None, "schema_version is 4; expected 3 for a packed set"),
        (("chat", "template_sha256"), "x", "content.chat.template_sha256"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    tmp_path: Path, place: tuple[str | int, ...], value: object, message: str
) -> None:
    write_chats(tmp_path / "chats", make_chats(), ROW)

    def change(raw: dict[str, object]) -> None:
        inner: object = raw["content"]
        for key in place[:-1]:
            inner = inner[key]  # type: ignore[index]
        if value is None:
            del inner[place[-1]]  # type: ignore[attr-defined]
        else:
            inner[place[-1]] = value  # type: ignore[index]

    edit_manifest(tmp_path / "chats", change)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_manifest(tmp_path / "chats")


def test_spans_that_no_document_has_are_refused(tmp_path: Path) -> None:
    manifest = write_chats(tmp_path / "chats", make_chats(pairs=True), ROW)
    path = tmp_path / "chats" / manifest.shards[0].sidecar
    table = pq.read_table(path)
    spans, sizes = table["loss_spans"].to_pylist(), table["num_tokens"].to_pylist()

    def write(column: str, values: list[object]) -> None:
        place = table.schema.names.index(column)
        field = table.schema.field(place)
        changed = table.set_column(place, field, pa.chunked_array([pa.array(values, field.type)]))
        pq.write_table(changed, path)
        edit_manifest(
            tmp_path / "chats",
            lambda raw: raw["environment"]["sidecar_sha256"].update({path.name: hash_file(path)}),
        )

    for first in ([0], [2, 1], [1, 1], [0, sizes[0] + 1], [0, 2, 1, 2], [0, None]):
        write("loss_spans", [first, *spans[1:]])
        with pytest.raises(SidecarError, match="loss_spans has spans that no document has"):
            open_labels(open_shards(tmp_path / "chats"), "train")
    halves = table["rejected_start"].to_pylist()
    for half in (0, sizes[0]):
        write("rejected_start", [half, *halves[1:]])
        with pytest.raises(SidecarError, match="rejected_start has a place that is not inside"):
            open_labels(open_shards(tmp_path / "chats"), "train")
    pq.write_table(table.drop_columns("loss_spans"), path)
    with pytest.raises(SidecarError, match="has no column loss_spans"):
        open_labels(open_shards(tmp_path / "chats"), "train")

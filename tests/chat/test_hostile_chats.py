"""Hostile rows of chats: one line each, in bounded memory, and no other chat the worse for it."""

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.chat.encode import Chat, ChatEncoder, EncodedChat
from model.chat.guard import FIRST_STAND_IN, LAST_STAND_IN
from model.chat.template import Asked, ChatTemplate, RendererCrash, RenderError
from prep.chat.rows import BadRow, parse_row
from prep.readers.whole import read_parquet_rows
from tests.chat.test_prep_chats import assistant, list_documents, prep, user, write_lines
from tests.chats import CHAT_TOKENIZER_JSON, TEMPLATE

GOOD = [user("Hi"), assistant("Hello.")]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that has the tokens of ChatML, as a file."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(CHAT_TOKENIZER_JSON, encoding="utf-8")
    return path


@pytest.mark.parametrize("depth", [60, 100, 900])
@pytest.mark.parametrize("nest", [lambda value: [value], lambda value: {"a": value}])
def test_a_row_of_any_depth_is_taken_or_refused(depth: int, nest: Any) -> None:
    value: Any = "x"
    for _ in range(depth):
        value = nest(value)
    row = {"messages": [user("Hi"), {**assistant("Hello."), "tool_calls": value}]}
    if depth < 64:
        assert parse_row(row).chats
    else:
        with pytest.raises(BadRow, match="nested more than 64 deep"):
            parse_row(row)


@pytest.mark.parametrize("has_tags", [True, False])
def test_a_chat_that_leaves_no_stand_ins_is_refused_alone(has_tags: bool) -> None:
    untagged = TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    source = TEMPLATE if has_tags else untagged
    encoder = ChatEncoder(
        ChatTemplate(source, {"eos_token": "<|im_end|>"}, has_clock=False), CHAT_TOKENIZER_JSON
    )
    every = "".join(map(chr, range(FIRST_STAND_IN, LAST_STAND_IN + 1)))
    half = every[: len(every) // 2]
    chats = [Chat(GOOD), Chat([user(every), assistant("x")]), Chat([user(half), assistant("x")])]
    found = encoder.encode([*chats, Chat(GOOD)])
    encoder.template.close()
    kinds = [EncodedChat, RenderError, EncodedChat, EncodedChat]
    assert [type(one) for one in found] == kinds
    assert "characters of the planes for private use" in str(found[1])
    with pytest.raises(RenderError, match="131,070 different characters"):
        encoder.encode_prompt([user(every)])


def test_bytes_in_a_table_are_text(tmp_path: Path, tokenizer: Path) -> None:
    kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.binary())]))
    rows = [[{**m, "content": m["content"].encode()} for m in GOOD]]
    pq.write_table(pa.table({"messages": pa.array(rows, kind)}), tmp_path / "bytes.parquet")
    lines = write_lines(tmp_path / "text.jsonl", [{"messages": GOOD}])
    prep(tmp_path / "bytes", [tmp_path / "bytes.parquet"], tokenizer)
    prep(tmp_path / "text", [lines], tokenizer)
    assert list_documents(tmp_path / "bytes") == list_documents(tmp_path / "text")


@pytest.mark.parametrize("in_lists", [True, False])
def test_a_text_that_rows_of_a_table_share_is_not_decoded_for_each(
    tmp_path: Path, in_lists: bool
) -> None:
    size, count = 8 << 20, 512
    shared = pa.DictionaryArray.from_arrays(
        pa.array([0] * count, pa.int32()), pa.array(["x" * size])
    )
    if in_lists:
        turns = pa.StructArray.from_arrays([shared], ["content"])
        offsets = pa.array(range(0, count + 1, 2), pa.int32())
        table = pa.table({"messages": pa.ListArray.from_arrays(offsets, turns)})
    else:
        table = pa.table({"prompt": shared, "completion": shared})
    pq.write_table(table, tmp_path / "a.parquet", store_schema=False)  # Read as plain texts.
    before = pa.total_allocated_bytes()
    for rows, _, _ in islice(read_parquet_rows(tmp_path / "a.parquet", [], range(1)), 2):
        assert 0 < len(rows) < 16
        assert pa.total_allocated_bytes() - before < 40 * size


def test_rows_of_a_table_come_whole_however_they_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prep.readers.whole._CHARS", 20_000)
    chats = [[user(str(n) * (n % 500)), assistant("x")] * (n % 7) for n in range(400)]
    names = [str(n) for n in range(400)]
    table = pa.table({"messages": chats, "url": pa.array(names, pa.large_string()), "kept": names})
    for version in ("1.0", "2.0"):
        path = tmp_path / f"{version}.parquet"
        pq.write_table(
            table,
            path,
            data_page_size=4096,
            dictionary_pagesize_limit=10_000,
            row_group_size=150,
            data_page_version=version,
        )
        found = [*read_parquet_rows(path, ["kept"], range(3))]
        assert [json.loads(row) for rows, _, _ in found for row in rows.to_pylist()] == [
            {"messages": chat} for chat in chats
        ]
        assert [url for _, urls, _ in found for url in urls.to_pylist()] == names
        assert [kept for _, _, others in found for kept in others["kept"].to_pylist()] == names


def test_a_table_with_two_columns_of_one_name_is_one_line(tmp_path: Path, tokenizer: Path) -> None:
    column = pa.array([GOOD])
    table = pa.Table.from_arrays([column, column], ["messages", "messages"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet: has two columns 'messages'; expected one"):
        prep(tmp_path / "set", [tmp_path / "a.parquet"], tokenizer)


def test_a_renderer_that_dies_is_one_line(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"messages": [user("Bye"), assistant("Bye.")]}])
    render_all = ChatTemplate.render_all

    def crash(template: ChatTemplate, chats: Sequence[Asked]) -> list[str | RenderError]:
        if any(message["content"] == fatal for chat in chats for message in chat.messages):
            raise RendererCrash("SIGSEGV ended it")
        return render_all(template, chats)

    monkeypatch.setattr(ChatTemplate, "render_all", crash)
    for fatal, place in (("Hi", "the template chatml"), ("Bye", f"{path}")):  # noqa: B007
        with pytest.raises(ValueError, match="crashed: SIGSEGV ended it") as error:
            prep(tmp_path / place[-3:], [path], tokenizer)
        assert str(error.value).startswith(f"{place}: the process that runs ")

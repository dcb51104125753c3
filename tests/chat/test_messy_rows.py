"""Rows as people have them: what they say counts, and what would be lost is refused in a line."""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards.chat.labels import LOSS
from shards.tokenizer import load_tokenizer
from tests.chat.test_prep_chats import (
    Row,
    assistant,
    list_documents,
    prep,
    user,
    write_lines,
)
from tests.tiny import TOKENIZER_JSON

BAD = {"role": "assistant", "content": "Wrong.", "weight": 0}
GOOD = {"role": "assistant", "content": "Right.", "weight": 1}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
# A template that says nothing of what is trained on.
UNTAGGED = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.json"
    path.write_text(TOKENIZER_JSON, encoding="utf-8")
    return path


def list_trained(folder: Path) -> list[str]:
    """What is trained on in each chat of a set, as text."""
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    return [
        tokenizer.decode([i for i, bit in zip(ids, bits, strict=True) if bit & LOSS])
        for ids, bits in list_documents(folder)
    ]


@pytest.mark.parametrize("template", ["tagged", "untagged"])
def test_answers_of_weight_0_are_read_and_not_trained_on(
    tmp_path: Path, tokenizer: Path, template: str
) -> None:
    (tmp_path / "untagged.jinja").write_text(UNTAGGED)
    gpt = {"from": "gpt", "value": "Wrong.", "weight": 0}
    rows: dict[str, list[Row]] = {
        "messages": [
            {"messages": [user("1"), BAD, user("2"), GOOD]},
            {"system": "S", "messages": [user("1"), GOOD, user("2"), BAD]},
            {"messages": [user("1"), BAD]},
        ],
        "turns": [
            {
                "system": "S",
                "conversations": [
                    {"from": "human", "value": "1"},
                    gpt,
                    {"from": "human", "value": "2"},
                    {"from": "gpt", "value": "Right."},
                ],
            }
        ],
    }
    paths = [write_lines(tmp_path / f"{name}.jsonl", each) for name, each in rows.items()]
    named = str(tmp_path / "untagged.jinja") if template == "untagged" else None
    manifest = prep(tmp_path / "set", paths, tokenizer, named)
    assert list_trained(tmp_path / "set") == ["Right."] * 3
    assert manifest.audit["dropped"]["no answer"] == 1
    texts = [
        load_tokenizer(tmp_path / "set" / "tokenizer.json").decode(ids)
        for ids, _ in list_documents(tmp_path / "set")
    ]
    assert all("Wrong." in text for text in texts)
    assert sum("system" in text for text in texts) == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [user("1"), {**GOOD, "weight": 0.5}]}, "messages[1].weight is 0.5; expected"),
        ({"messages": [user("1"), {**GOOD, "tool_calls": [CALL]}]}, "has tool_calls, which the ch"),
        ({"messages": [user("1"), GOOD], "tools": [{"type": "function"}]}, "has tools, the descri"),
        (
            {"messages": [user("1"), {"role": "assistant", "function_call": {"name": "f"}}]},
            "messages[1] has function_call, which tool_calls took the place of",
        ),
        (
            {"system": "S", "messages": [{"role": "system", "content": "T"}, user("1"), GOOD]},
            "has a system prompt under system and another one in messages[0]",
        ),
        ({"prompt": "1", "completion": "2", "label": False}, "has label false, KTO's mark of an"),
    ],
)
def test_what_would_be_lost_is_refused(
    tmp_path: Path, tokenizer: Path, row: Row, message: str
) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [row])
    with pytest.raises(ValueError, match=rf"rows\.jsonl, line 1: {re.escape(message)}"):
        prep(tmp_path / "set", [path], tokenizer)


def test_one_message_is_an_answer_and_nulls_of_a_table_are_no_keys(
    tmp_path: Path, tokenizer: Path
) -> None:
    pair = {"prompt": "1", "chosen": assistant("Right."), "rejected": assistant("Wrong.")}
    prep(tmp_path / "pairs", [write_lines(tmp_path / "pairs.jsonl", [pair])], tokenizer)
    assert list_trained(tmp_path / "pairs") == ["Right.Wrong."]
    turns = [{**user("1"), "weight": None, "tool_calls": None}, {**BAD, "tool_calls": None}, GOOD]
    rows = [{"messages": turns, "tools": None, "system": None}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    prep(tmp_path / "set", [tmp_path / "rows.parquet"], tokenizer)
    assert list_trained(tmp_path / "set") == ["Right."]

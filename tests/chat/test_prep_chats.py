"""`velocity prep --chat`: rows of every format, what is dropped, and the finished set."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from transformers import PreTrainedTokenizerFast

from model.chat.builtin import BUILT_IN
from prep.append import append_sources
from prep.gather import finish_parts
from prep.policy import Policy
from prep.request import Request
from prep.run import prepare
from prep.run_part import prepare_part
from shards.chat.labels import BEGIN, LOSS, REJECTED, open_labels
from shards.disk.part import Part
from shards.documents import Sidecars
from shards.format import Manifest, read_manifest
from shards.inspect.verify import verify_shards
from shards.reader import open_shards
from tests.commands import velocity
from tests.tiny import TOKENIZER_JSON

Row = dict[str, Any]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny tokenizer as a file: it lacks the tokens of ChatML."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(TOKENIZER_JSON, encoding="utf-8")
    return path


def write_lines(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def prep(
    out: Path,
    inputs: Sequence[Path],
    tokenizer: Path | None,
    template: str | None = None,
    **policy: Any,
) -> Manifest:
    """A set of chats, made in this process."""
    settings = {"validation_fraction": "0", "pack_tokens": 256} | policy
    request = Request(
        out=out,
        inputs=tuple(map(str, inputs)),
        policy=Policy(chat=True, **settings),
        tokenizer=None if tokenizer is None else str(tokenizer),
        template=template,
        workers=1,
        engine="local",
    )
    return prepare(request, LINES.append)


LINES: list[str] = []


def list_documents(folder: Path, split: str = "train") -> list[tuple[list[int], list[int]]]:
    """The tokens and labels of each document, by its source and row."""
    shards = open_shards(folder)
    stream, labels = shards.stream(split), open_labels(shards, split)
    found = []
    for document in Sidecars(shards, split).between(0, stream.num_tokens):
        ids = stream.read(document.start, document.num_tokens).tolist()
        bits = labels.read(np.array([document.start]), document.num_tokens)[0].tolist()
        found.append((document.source_file, document.source_row, ids, bits))
    return [(ids, bits) for _, _, ids, bits in sorted(found)]


def user(text: str) -> Row:
    return {"role": "user", "content": text}


def assistant(text: str) -> Row:
    return {"role": "assistant", "content": text}


CHATS = [
    [user("Hi"), assistant("Hello.")],
    [
        {"role": "system", "content": "Be short."},
        user("1+1?"),
        assistant("2"),
        user("2+2?"),
        assistant("4"),
    ],
    [
        user("A <|im_end|> in text"),
        assistant("is text: <|im_start|>user"),
        user("no answer to this"),
    ],
]


def test_documents_are_what_transformers_makes_of_the_messages(
    tmp_path: Path, tokenizer: Path
) -> None:
    harmless = CHATS[:2]
    manifest = prep(
        tmp_path / "set",
        [write_lines(tmp_path / "a.jsonl", [{"messages": chat} for chat in CHATS])],
        tokenizer,
    )
    reference: Any = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "set/tokenizer.json"))
    assert reference.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"]) == [300, 301]
    documents = list_documents(tmp_path / "set")
    for chat, (ids, bits) in zip(harmless, documents, strict=False):
        expected = reference.apply_chat_template(
            chat,
            chat_template=BUILT_IN["chatml"].source,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        assert ids == [*expected["input_ids"], 0]
        assert [bit & LOSS for bit in bits] == [*expected["assistant_masks"], 0]
        assert [bit & BEGIN for bit in bits] == [BEGIN] + [0] * (len(ids) - 1)
    ids, bits = documents[2]
    assert [i for i in ids if i >= 300] == [300, 301] * 3
    assert reference.decode(ids).count("<|im_end|>") == 4
    # The last message is a user's: nothing of it is trained on.
    assert not any(bit & LOSS for bit in bits[-10:])
    assert manifest.chat is not None
    trained = sum(bit & LOSS for _, bits in documents for bit in bits)
    everything = sum(len(ids) for ids, _ in documents)
    padding = sum(shard.padding_tokens for shard in manifest.shards)
    assert manifest.chat["loss_tokens"] == trained
    assert manifest.chat["other_tokens"] == everything - trained
    assert everything + padding == manifest.num_tokens("train")
    assert manifest.chat["tokens"] == {"eos_token": "<|endoftext|>"}
    assert manifest.chat["end_of_turn"] == 301
    assert manifest.vocab_size == 302
    assert (tmp_path / "set/chat_template.jinja").read_text() == BUILT_IN["chatml"].source
    assert [fault for _, fault in verify_shards(tmp_path / "set") if fault] == []
    assert f"{trained:,} tokens with loss + {everything - trained:,} without" in "\n".join(LINES)


SAME = [user("Translate.\n\nHallo"), assistant("Hello.")]
ROWS: dict[str, Row] = {
    "messages": {"messages": SAME},
    "parts": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Translate.\n\nHallo"}]},
            SAME[1],
        ]
    },
    "conversations": {
        "conversations": [
            {"from": "human", "value": "Translate.\n\nHallo"},
            {"from": "gpt", "value": "Hello."},
        ]
    },
    "alpaca": {"instruction": "Translate.", "input": "Hallo", "output": "Hello."},
    "alpaca without input": {
        "instruction": "Translate.\n\nHallo",
        "input": None,
        "output": "Hello.",
    },
    "completion": {"prompt": "Translate.\n\nHallo", "completion": "Hello."},
    "completion of messages": {"prompt": SAME[:1], "completion": SAME[1:]},
}


def test_every_format_makes_the_same_chat(tmp_path: Path, tokenizer: Path) -> None:
    found = []
    for number, (name, row) in enumerate(ROWS.items()):
        paths = [write_lines(tmp_path / f"{number}.jsonl", [row])]
        listed = tmp_path / f"{number}.json"
        listed.write_text(json.dumps([row], indent=1))
        paths.append(listed)
        if name != "parts":  # A column holds one type.
            table = pa.Table.from_pylist([row])
            pq.write_table(table, tmp_path / f"{number}.parquet")
            feather = tmp_path / f"{number}.arrow"
            pa.feather.write_feather(table, feather, compression="uncompressed")
            paths += [tmp_path / f"{number}.parquet", feather]
        if name.startswith("alpaca") and row["input"]:
            path = tmp_path / f"{number}.csv"
            path.write_text("instruction,input,output\nTranslate.,Hallo,Hello.\n")
            paths.append(path)
        prep(tmp_path / f"set {number}", paths, tokenizer)
        documents = list_documents(tmp_path / f"set {number}")
        assert len(documents) == len(paths)
        found += documents
    assert all(document == found[0] for document in found)
    assert sum(bit & LOSS for bit in found[0][1]) > 3


def test_only_the_completion_or_the_last_answer_is_trained_on(
    tmp_path: Path, tokenizer: Path
) -> None:
    prompt, answer = [*CHATS[1][:4]], CHATS[1][4:]
    rows = [{"prompt": prompt, "completion": answer}]
    prep(tmp_path / "a", [write_lines(tmp_path / "a.jsonl", rows)], tokenizer)
    path = write_lines(tmp_path / "b.jsonl", [{"messages": CHATS[1]}])
    prep(tmp_path / "b", [path], tokenizer, train_on="last")
    prep(tmp_path / "c", [path], tokenizer)
    [completion], [last], [every] = (list_documents(tmp_path / name) for name in "abc")
    assert completion == last
    assert last[0] == every[0]
    assert sum(b & LOSS for b in last[1]) * 2 == sum(b & LOSS for b in every[1])
    assert read_manifest(tmp_path / "b").dataset_id != read_manifest(tmp_path / "c").dataset_id


def test_preferences_are_pairs_in_one_piece(tmp_path: Path, tokenizer: Path) -> None:
    asked, better, worse = user("1+1?"), assistant("2"), assistant("It is 3, I think.")
    rows: list[Row] = [
        {"prompt": "1+1?", "chosen": "2", "rejected": "It is 3, I think."},
        {"prompt": [asked], "chosen": [better], "rejected": [worse]},
        {"chosen": [asked, better], "rejected": [asked, worse]},
        {"prompt": [asked], "chosen": [asked, better], "rejected": [asked, worse]},
    ]
    manifest = prep(tmp_path / "set", [write_lines(tmp_path / "a.jsonl", rows)], tokenizer)
    assert manifest.chat is not None
    assert manifest.chat["kind"] == "preferences"
    documents = list_documents(tmp_path / "set")
    assert len(documents) == 4
    assert all(document == documents[0] for document in documents)
    prep(
        tmp_path / "halves",
        [write_lines(tmp_path / "b.jsonl", [{"messages": [asked, m]} for m in (better, worse)])],
        tokenizer,
    )
    halves = list_documents(tmp_path / "halves")
    ids, bits = documents[0]
    assert ids == halves[0][0] + halves[1][0]
    assert [b & (LOSS | BEGIN) for b in bits] == halves[0][1] + halves[1][1]
    start = len(halves[0][0])
    assert [bool(b & REJECTED) for b in bits] == [place >= start for place in range(len(ids))]
    assert [fault for _, fault in verify_shards(tmp_path / "set") if fault] == []


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "Hi"}], r"line 1: has the keys 'text'; expected messages, conversations,"),
        (
            [ROWS["messages"], ROWS["alpaca"]],
            "line 2: holds instruction and output, and the rows before it in this file messages",
        ),
        ([{"messages": "Hi"}], "line 1: messages is 'Hi'; expected a list"),
        ([{"messages": [{"role": "User", "content": "Hi"}]}], r"messages\[0\].role is 'User'"),
        ([{"messages": [{"content": "Hi"}]}], r"messages\[0\] is .*; expected an object with role"),
        ([{"messages": [user("Hi"), {"role": "assistant", "content": 3}]}], "content is 3; expect"),
        (
            [{"conversations": [{"from": "dog", "value": "x"}]}],
            "is from 'dog'; expected one of hum",
        ),
        ([{"conversations": [{"human": "x"}]}], "expected an object with from and value"),
        ([{"chosen": "a", "rejected": "b"}], "share no prompt"),
        ([{"prompt": "x", "chosen": "a", "rejected": "a"}], "are the same; expected two answers"),
        ([{"instruction": "x", "output": ["y", 1]}], "output is .*; expected text"),
    ],
)
def test_a_row_that_is_no_chat_is_one_line(
    tmp_path: Path, tokenizer: Path, rows: list[Row], message: str
) -> None:
    path = write_lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(ValueError, match=message) as error:
        prep(tmp_path / "set", [path], tokenizer)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
    good = write_lines(tmp_path / "b.jsonl", [ROWS["messages"]])
    rows_read = len(rows)
    manifest = prep(tmp_path / "skipped", [path, good], tokenizer, on_bad_document="skip")
    assert manifest.audit["documents_read"] == rows_read + 1
    assert sum(n for why, n in manifest.audit["dropped"].items() if why.startswith("bad: ")) == 1


def test_what_teaches_nothing_is_dropped_and_counted(tmp_path: Path, tokenizer: Path) -> None:
    long = "x y z " * 500
    rows = [
        {"messages": []},
        {"messages": [user("Hi")]},
        {"messages": [{"role": "system", "content": "Be short."}]},
        {"messages": [user("Hi"), assistant(" \n")]},
        {"messages": [user(long), assistant("Too long.")]},
        *({"messages": chat} for chat in CHATS),
    ]
    LINES.clear()
    manifest = prep(tmp_path / "set", [write_lines(tmp_path / "a.jsonl", rows)], tokenizer)
    dropped = {why: count for why, count in manifest.audit["dropped"].items() if count}
    assert dropped == {"no messages": 1, "no answer": 2, "empty answer": 1, "too long": 1}
    assert manifest.audit["train"] == len(CHATS)
    assert manifest.audit["longest"] > 256
    assert (
        "1 chats have more than 256 tokens and were dropped, as none is cut; the longest has "
        f"{manifest.audit['longest']:,}: to keep them, raise --pack-tokens"
    ) in "\n".join(LINES)


def test_what_a_template_says_of_a_chat_is_shown(tmp_path: Path, tokenizer: Path) -> None:
    template = tmp_path / "strict.jinja"
    template.write_text(
        "{%- for m in messages %}{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{- raise_exception('roles must alternate') }}{%- endif %}"
        "{{- m.content + eos_token }}{%- endfor %}"
    )
    path = write_lines(tmp_path / "a.jsonl", [{"messages": c} for c in (CHATS[0], CHATS[0][::-1])])
    with pytest.raises(
        ValueError, match=r"a\.jsonl, line 2: the chat template does not take it: .*roles must alt"
    ):
        prep(tmp_path / "set", [path], tokenizer, str(template))
    manifest = prep(tmp_path / "two", [path], tokenizer, str(template), on_bad_document="skip")
    assert manifest.audit["dropped"]["bad: refused by the template"] == 1
    assert manifest.vocab_size == 300
    assert manifest.chat is not None
    assert manifest.chat["end_of_turn"] == 0
    # It ends with the end token already, so that there is one.
    [(ids, _)] = list_documents(tmp_path / "two")
    assert ids.count(0) == 2


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "cannot be trained with: no spec"),
        ("{{ messages", "cannot be trained with: TemplateSyntaxError"),
        ("{{ strftime_now('%d') }}", "'strftime_now' is undefined"),
        ("{# #}" * 60_000, "its chat template is not a text of at most 262,144 characters"),
    ],
)
def test_a_template_is_tried_before_anything_is_made(
    tmp_path: Path, tokenizer: Path, source: str, message: str
) -> None:
    (tmp_path / "bad.jinja").write_text(source)
    path = write_lines(tmp_path / "a.jsonl", [{"messages": CHATS[0]}])
    with pytest.raises(ValueError, match=re.escape(message)):
        prep(tmp_path / "set", [path], tokenizer, str(tmp_path / "bad.jinja"))
    with pytest.raises(ValueError, match="no such file or folder; expected a file, a folder that"):
        prep(tmp_path / "set", [path], tokenizer, "missing.jinja")


def test_the_template_of_a_models_folder_is_the_default(tmp_path: Path, tokenizer: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(TOKENIZER_JSON)
    source = "{% for m in messages %}{{ bos_token + m.role + m.content + eos_token }}{% endfor %}"
    config = {"chat_template": source, "eos_token": "<|endoftext|>", "bos_token": {"content": "!"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    path = write_lines(tmp_path / "a.jsonl", [{"messages": CHATS[0]}])
    manifest = prep(tmp_path / "set", [path], folder)
    assert (tmp_path / "set/chat_template.jinja").read_text() == source
    assert manifest.chat is not None
    assert manifest.chat["tokens"] == {"eos_token": "<|endoftext|>", "bos_token": "!"}
    again = prep(tmp_path / "named", [path], tokenizer, str(folder))
    assert again.dataset_id == manifest.dataset_id
    with pytest.raises(ValueError, match="has no chat template"):
        prep(tmp_path / "no", [path], tokenizer, str(tmp_path))


def test_rows_are_the_same_whoever_does_the_work(tmp_path: Path, tokenizer: Path) -> None:
    rows = [{"messages": [user(f"{i}+{i}?"), assistant(f"{2 * i}.")]} for i in range(300)]
    paths = [write_lines(tmp_path / f"{n}.jsonl", rows[n::3]) for n in range(3)]
    one = prep(tmp_path / "one", paths, tokenizer, unit_bytes=4096, validation_fraction="0.1")
    request = Request(
        out=tmp_path / "two",
        inputs=tuple(map(str, paths)),
        policy=Policy(chat=True, validation_fraction="0.1", pack_tokens=256, unit_bytes=4096),
        tokenizer=str(tokenizer),
        workers=2,
    )
    two = prepare(request, LINES.append)
    assert one.dataset_id == two.dataset_id
    assert one.environment["sidecar_sha256"] == two.environment["sidecar_sha256"]
    assert len(one.shards) > 4


def test_copies_and_conditions_work_on_chats(tmp_path: Path, tokenizer: Path) -> None:
    rows = [
        {"messages": [user(f"{i % 7}+{i % 7}?"), assistant(f"{i % 7 * 2}.")], "score": i}
        for i in range(20)
    ]
    path = write_lines(tmp_path / "a.jsonl", rows)
    manifest = prep(tmp_path / "exact", [path], tokenizer, dedup="exact")
    assert manifest.audit["train"] == 7
    assert len(list_documents(tmp_path / "exact")) == 7
    kept = prep(
        tmp_path / "kept", [path], tokenizer, where=("score>=15",), keep_column=("score:integer",)
    )
    assert kept.audit["train"] == 5
    assert [fault for _, fault in verify_shards(tmp_path / "exact") if fault] == []
    with pytest.raises(ValueError, match="the sidecar has a column loss_spans of its own"):
        prep(tmp_path / "no", [path], tokenizer, keep_column=("loss_spans:integer",))


def test_more_chats_are_appended_with_the_sets_own_template(
    tmp_path: Path, tokenizer: Path
) -> None:
    first = write_lines(tmp_path / "a.jsonl", [{"messages": chat} for chat in CHATS])
    second = write_lines(tmp_path / "b.jsonl", [ROWS["alpaca"]])
    before = prep(tmp_path / "set", [first], tokenizer)
    policy = Policy(chat=True, validation_fraction="0", pack_tokens=256)
    request = Request(
        out=tmp_path / "set", inputs=(str(second),), policy=policy, workers=1, task="append"
    )
    after = append_sources(request, LINES.append)
    assert before.chat is not None
    assert after.chat is not None
    assert after.chat["loss_tokens"] > before.chat["loss_tokens"]
    assert len(list_documents(tmp_path / "set")) == len(CHATS) + 1
    assert [fault for _, fault in verify_shards(tmp_path / "set") if fault] == []
    pairs = write_lines(tmp_path / "c.jsonl", [{"prompt": "x", "chosen": "a", "rejected": "b"}])
    with pytest.raises(ValueError, match="expected one kind a set"):
        append_sources(Request(**vars(request) | {"inputs": (str(pairs),)}), LINES.append)
    other = Policy(validation_fraction="0")
    with pytest.raises(ValueError, match="chat was True, is now None"):
        append_sources(Request(**vars(request) | {"policy": other}), LINES.append)


def test_options_that_mean_nothing_for_chats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--text-column is for texts, not for --chat"):
        Policy(chat=True, text_column="text")
    with pytest.raises(ValueError, match="--train-on is for --chat"):
        Policy(train_on="last")
    with pytest.raises(ValueError, match="--train-on is first; expected all or last"):
        Policy(chat=True, train_on="first")
    with pytest.raises(ValueError, match="--template is for --chat"):
        Request(out=tmp_path, template="chatml")
    for name, value in (("begin_of_document", "<s>"), ("encoder", "fastokens")):
        option = f"--{name.replace('_', '-')}"
        with pytest.raises(ValueError, match=option):
            Request(out=tmp_path, policy=Policy(chat=True), **{name: value})
    text = tmp_path / "a.txt"
    text.write_text("Hi")
    with pytest.raises(ValueError, match="holds texts, and --chat takes rows with messages"):
        prep(tmp_path / "set", [text], None)
    assert os.listdir(tmp_path / "set")


def test_the_last_line_is_the_command_that_trains_on_chats(tmp_path: Path, tokenizer: Path) -> None:
    rows: dict[str, Row] = {
        "sft": ROWS["messages"],
        "dpo": {"prompt": "x", "chosen": "a", "rejected": "b"},
    }
    for name, row in rows.items():
        path = write_lines(tmp_path / f"{name}.jsonl", [row])
        words = ["prep", "--chat", "--input", path, "--out", name, "--tokenizer", tokenizer]
        code, _, said = velocity(*words, "--validation-fraction", "0", cwd=tmp_path)
        assert code == 0
        assert said.splitlines()[-1] == (
            f"next: torchrun --nproc_per_node 1 -m train --config {name} data.shards={name} "
            "model.start=CKPT"
        )
        assert "one after another" not in said
    words = ["prep", "--chat", "--input", path, "--out", "none", "--tokenizer", tokenizer]
    code, _, said = velocity(*words, "--pack-tokens", "8", cwd=tmp_path)
    assert code == 0
    assert "look at why chats were dropped, the sources, the filters and --pack-tokens" in said


def test_parts_of_the_work_make_the_same_set(tmp_path: Path, tokenizer: Path) -> None:
    rows = [{"messages": [user(f"{i}+{i}?"), assistant(f"{2 * i}.")]} for i in range(60)]
    paths = [write_lines(tmp_path / f"{n}.jsonl", rows[n::3]) for n in range(3)]
    whole = prep(tmp_path / "whole", paths, tokenizer, unit_bytes=1000)
    policy = Policy(chat=True, validation_fraction="0", pack_tokens=256, unit_bytes=1000)
    out = tmp_path / "parts"
    for number in (1, 0):
        prepare_part(
            Request(
                out=out,
                inputs=tuple(map(str, paths)),
                policy=policy,
                tokenizer=str(tokenizer),
                workers=1,
                task=Part(number, 2),
            ),
            LINES.append,
        )
    gathered = finish_parts(Request(out=out, workers=1, task="finish"), LINES.append)
    assert gathered.dataset_id == whole.dataset_id
    near = prep(tmp_path / "near", paths, tokenizer, dedup="near", unit_bytes=1000)
    assert near.audit["train"] <= 60
    assert [fault for _, fault in verify_shards(tmp_path / "near") if fault] == []

"""What the commands of sets make of chats: shown, verified, removed, moved, and not exported."""

import json
from pathlib import Path

import numpy as np
import pytest

from prep.policy import Policy
from prep.request import Request
from prep.run import prepare
from shards.chat.labels import LOSS, open_labels
from shards.disk.durable import hash_file
from shards.documents import Sidecars
from shards.edit.remove import collect_wanted, find_wanted, remove_documents
from shards.exchange.export import export_megatron
from shards.exchange.pull import pull_shards
from shards.exchange.push import push_shards
from shards.format import read_manifest
from shards.inspect.verify import verify_shards
from shards.reader import open_shards
from tests.chats import Chat, write_chats
from tests.commands import velocity
from tests.manifests import edit_manifest
from tests.tiny import TOKENIZER_JSON

ROW = 16


def write(folder: Path, pairs: bool = False) -> Path:
    """A set of 30 chats of 4 to 8 tokens, of which the second and third are trained on."""
    chats = []
    for number in range(30):
        size = number % 5 + 4
        ids = (*([number % 250 + 10] * (size - 1)), 0)
        chats.append(Chat(ids, ((1, 3),), size - 2 if pairs else None))
    write_chats(folder, chats, ROW, shard_tokens=8 * ROW)
    return folder


def find_faults(folder: Path) -> list[str]:
    return [f"{name}: {fault}" for name, fault in verify_shards(folder) if fault]


def list_trained(folder: Path) -> dict[int, list[int]]:
    """The places of the tokens that are trained on, by the row of their chat."""
    shards = open_shards(folder)
    labels, found = open_labels(shards, "train"), {}
    stream = shards.stream("train")
    for document in Sidecars(shards, "train").between(0, stream.num_tokens):
        bits = labels.read(np.array([document.start]), document.num_tokens)[0]
        if not document.is_blank:
            found[document.source_row] = np.flatnonzero(bits & LOSS).tolist()
        else:
            assert not (bits & LOSS).any()
    return found


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("keeps_places", [False, True])
def test_removed_chats_take_their_spans_with_them(
    tmp_path: Path, keeps_places: bool, pairs: bool
) -> None:
    folder = write(tmp_path / "chats", pairs)
    before = read_manifest(folder)
    urls = [f"https://example.com/{number}" for number in (0, 7, 8, 29)]
    shards = open_shards(folder)
    found = find_wanted(shards, collect_wanted(urls, None, (), None))
    assert len(found) == 4
    after = remove_documents(shards, found, keeps_places)
    kept = [number for number in range(30) if number not in (0, 7, 8, 29)]
    assert list_trained(folder) == {number: [1, 2] for number in kept}
    assert before.chat is not None
    assert after.chat is not None
    assert after.chat["loss_tokens"] == before.chat["loss_tokens"] - 8
    assert after.chat["template_sha256"] == before.chat["template_sha256"]
    assert find_faults(folder) == []


def test_a_set_travels_with_its_template(tmp_path: Path) -> None:
    folder, url = write(tmp_path / "chats"), str(tmp_path / "there")
    lines: list[str] = []
    pushed = push_shards(folder, url, lines.append)
    pulled = pull_shards(url, tmp_path / "back", lines.append)
    assert pulled.dataset_id == pushed.dataset_id
    template = "chat_template.jinja"
    assert (tmp_path / "back" / template).read_bytes() == (folder / template).read_bytes()
    assert find_faults(tmp_path / "back") == []
    part = pull_shards(url, tmp_path / "split", lines.append, split="train")
    assert part.chat == pushed.chat
    (tmp_path / "there" / template).unlink()
    with pytest.raises(ValueError, match=r"chat_template\.jinja: is missing there"):
        pull_shards(url, tmp_path / "again", lines.append)


def test_verify_recounts_what_is_trained_on(tmp_path: Path) -> None:
    folder = write(tmp_path / "chats")
    assert find_faults(folder) == []

    def claim_less(raw: dict[str, dict[str, dict[str, int]]]) -> None:
        raw["content"]["shards"][0]["loss_tokens"] -= 1  # type: ignore[index]
        raw["content"]["chat"]["loss_tokens"] -= 1
        raw["content"]["chat"]["other_tokens"] += 1

    edit_manifest(folder, claim_less)
    [fault] = find_faults(folder)
    assert "tokens that are trained on; expected" in fault
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert "chat_template.jinja: is missing, or its sha256" in find_faults(folder)[0]


def test_a_chat_is_shown_with_what_is_trained_on(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]},
        {"prompt": "1+1?", "chosen": "2", "rejected": "3"},
    ]
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(TOKENIZER_JSON)
    for number, row in enumerate(rows):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(json.dumps(row) + "\n")
        policy = Policy(chat=True, validation_fraction="0", pack_tokens=64)
        prepare(
            Request(
                out=tmp_path / f"set{number}",
                inputs=(str(path),),
                policy=policy,
                tokenizer=str(tokenizer),
                workers=1,
            ),
            lambda line: None,
        )
    code, out, _ = velocity("shards", "show", "set0", "--document", "0", "--loss", cwd=tmp_path)
    expected = (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n\u27e6Yes.<|im_end|>\u27e7\n"
        "<|endoftext|>\n"
    )
    assert (code, out) == (0, expected)
    code, out, _ = velocity("shards", "show", "set1", "--document", "0", "--loss", cwd=tmp_path)
    assert "\u27e62<|im_end|>\u27e7" in out
    assert "\u27ea3<|im_end|>\u27eb" in out
    words = ["shards", "show", "set0", "--start", "0", "--tokens", "22", "--loss", "--json"]
    code, out, _ = velocity(*words, cwd=tmp_path)
    shown = json.loads(out)
    assert shown["begin"] == [1] + [0] * 21
    assert shown["loss"] == [0] * 20 + [1] * 2
    assert shown["text"].endswith("assistant\nYe")
    for words, message in (
        (["show", "set0", "--document", "0", "--json"], "--json is for --copies and --loss"),
        (["export", "set0", "there/x"], "is a set of chats, and this format cannot say which"),
    ):
        code, _, error = velocity("shards", *words, cwd=tmp_path)
        assert code != 0
        assert message in error
    code, out, _ = velocity("shards", "info", "set0", cwd=tmp_path)
    assert "chats       conversations, " in out


def test_an_export_would_lose_the_marks(tmp_path: Path) -> None:
    folder = write(tmp_path / "chats")
    with pytest.raises(ValueError, match="who reads it would train on all of them"):
        export_megatron(open_shards(folder), "train", tmp_path / "x")
    assert (
        hash_file(folder / "tokenizer.json") == read_manifest(folder).content["tokenizer"]["sha256"]
    )

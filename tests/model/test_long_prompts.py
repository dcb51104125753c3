"""Prompts that cannot fit are refused by their size, before they are encoded, and no others are."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from model.checkpoints.tokenizer import count_least, find_longest_token
from model.decode.generator import ContextExceeded, Generator
from model.decode.settings import Settings
from prep.tokenizer.gpt2 import build_gpt2_json
from tests.model.test_serve_chat import write_folder
from tests.servers.model_server import run_server
from tests.tiny import CONFIG, make_model, make_tokenizer

GPT2 = Tokenizer.from_str(build_gpt2_json())
LONGEST = "é" * 20


def make_longer() -> Tokenizer:
    """The tiny tokenizer with LONGEST as one token."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([LONGEST])
    return tokenizer


class Silent:
    """A tokenizer that nothing is encoded with."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def encode(self, *_: object, **__: object) -> NoReturn:
        raise AssertionError("a prompt that cannot fit was encoded")


KNOWN = [(tokenizer, find_longest_token(tokenizer)) for tokenizer in (GPT2, make_longer())]


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_no_text_becomes_fewer_tokens_than_its_size_tells(text: str) -> None:
    for tokenizer, longest in KNOWN:
        assert count_least(text, longest) <= len(tokenizer.encode(text).ids)


def test_the_longest_token_is_known_where_no_byte_is_lost() -> None:
    assert [longest for _, longest in KNOWN] == [128, 40]
    assert len(make_longer().encode(LONGEST).ids) == 1
    assert find_longest_token(make_tokenizer()) == len("<|endoftext|>")


def test_what_may_shorten_a_text_has_no_bound() -> None:
    changed = [make_tokenizer() for _ in range(5)]
    changed[0].normalizer = normalizers.NFC()  # type: ignore[assignment]
    spaces = pre_tokenizers.Split(" ", "removed")
    changed[1].pre_tokenizer = pre_tokenizers.Sequence([spaces, changed[1].pre_tokenizer])  # type: ignore[assignment, list-item]
    changed[2].pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    changed[3].add_tokens([AddedToken("<end>", lstrip=True)])
    lacking = json.loads(changed[4].to_str())
    del lacking["model"]["vocab"]["Ā"]  # Byte 0, which no merge of this tokenizer has.
    changed[4] = Tokenizer.from_str(json.dumps(lacking))
    words = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    assert [find_longest_token(tokenizer) for tokenizer in (*changed, words)] == [None] * 6


def test_a_prompt_at_the_bound_is_written_to_and_one_behind_it_not_encoded() -> None:
    generator = Generator(make_model(replace(CONFIG, vocab_size=301)), make_longer())
    fits = LONGEST * (generator.context - 1)
    [text] = generator.generate(fits, max_new_tokens=1)
    assert text.startswith(fits)
    with pytest.raises(ContextExceeded, match=rf"the prompt has {generator.context} tokens"):
        generator.generate(LONGEST * generator.context, max_new_tokens=1)
    generator.tokenizer = Silent(generator.tokenizer)  # type: ignore[assignment]
    least = generator.context + 1
    with pytest.raises(ContextExceeded, match=rf"the prompt has at least {least} tokens, the mod"):
        generator.start([LONGEST * generator.context + "a"], Settings())


def test_the_server_encodes_no_prompt_that_cannot_fit(tmp_path: Path) -> None:
    with run_server(write_folder(tmp_path / "model")) as server:
        served, text = server.served, "x" * 1_300_000
        chats = served.expect_chats()
        asked: list[tuple[str, dict[str, Any], str]] = [
            ("completions", {"prompt": text}, "prompt"),
            ("chat/completions", {"messages": [{"role": "user", "content": text}]}, "messages"),
            ("responses", {"input": text}, "input"),
        ]
        for holder in (served.generator, chats):
            holder.tokenizer = Silent(holder.tokenizer)  # type: ignore[assignment, union-attr]
        for path, fields, param in asked:
            answer = server.post(f"/v1/{path}", model=served.id, **fields)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (400, "context_length_exceeded"), error
            assert error["param"] == param
            assert re.fullmatch(
                r"the prompt has at least \d{2,3},\d{3} tokens, the model's context is 128; "
                "shorten the prompt to leave room for new text",
                error["message"],
            )

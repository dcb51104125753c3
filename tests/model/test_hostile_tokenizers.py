"""Tokenizers at which `tokenizers` panics: one line for each text, and no other text is lost.

A panic is no Exception of Python's, so that nothing that catches those would see it.
"""

import json
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from model.chat.encode import Chat, ChatEncoder, EncodedChat
from model.chat.template import ChatTemplate, RenderError
from model.checkpoints.folder import save_model
from model.checkpoints.tokenizer import TokenizerPanic
from model.generate import load_generator
from tests.chats import CHAT_TOKENIZER_JSON, TEMPLATE
from tests.commands import velocity
from tests.servers.model_server import run_server
from tests.tiny import CONFIG, make_model

# A regular expression that tries every way to cut the letters, and gives up.
BACKTRACKING = {
    "type": "Split",
    "pattern": {"Regex": "(a+)+$"},
    "behavior": "Isolated",
    "invert": False,
}
FATAL = "a" * 40 + "!"
HOSTILE_JSON = json.dumps(json.loads(CHAT_TOKENIZER_JSON) | {"pre_tokenizer": BACKTRACKING})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "model"
    save_model(folder, make_model(replace(CONFIG, vocab_size=302)), HOSTILE_JSON)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def ask(text: str) -> Chat:
    return Chat([{"role": "user", "content": text}, {"role": "assistant", "content": "Yes."}])


def test_a_chat_that_cannot_be_encoded_costs_no_other() -> None:
    template = ChatTemplate(TEMPLATE, {"eos_token": "<|im_end|>"}, has_clock=False)
    encoder = ChatEncoder(template, HOSTILE_JSON)
    found = encoder.encode([ask("Hi"), ask(FATAL), ask("Bye")])
    assert [type(one) for one in found] == [EncodedChat, RenderError, EncodedChat]
    assert "the tokenizer cannot encode this text (Onig: " in str(found[1])
    with pytest.raises(TokenizerPanic, match="cannot encode this text"):
        encoder.encode_prompt(ask(FATAL).messages)
    template.close()


def test_a_prompt_that_cannot_be_encoded_is_one_line(folder: Path) -> None:
    generator = load_generator(folder, "cpu")
    with pytest.raises(TokenizerPanic, match="cannot encode this text"):
        generator.generate(FATAL)
    for command, given in (("sample", ["--prompt", FATAL]), ("chat", [])):
        code, _, errors = velocity(command, "--ckpt", folder, *given, stdin=f"{FATAL}\n")
        assert code == 1
        [line] = [line for line in errors.splitlines() if line.startswith("velocity: ")]
        assert "the tokenizer cannot encode this text (Onig: " in line


def test_any_panic_ends_a_command_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.checkpoints.tokenizer.PANIC", "another class")
    code, _, errors = velocity("sample", "--ckpt", folder, "--prompt", FATAL)
    assert code == 1
    assert "velocity: unexpected RuntimeError: panic of a library: Onig: " in errors


def test_a_server_tells_its_client_and_goes_on(folder: Path) -> None:
    chat = {"messages": [{"role": "user", "content": FATAL}]}
    with run_server(folder) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        for path, body in (
            ("completions", {"prompt": FATAL}),
            ("completions", {"prompt": FATAL, "stream": True}),
            ("chat/completions", chat),
            ("responses", {"input": FATAL}),
        ):
            answer = client.post(f"/v1/{path}", json=body)
            assert answer.status_code == 400, answer.text
            assert answer.json()["error"]["code"] == "tokenizer_error"
        good = client.post("/v1/completions", json={"prompt": "Hi", "max_tokens": 1})
        assert good.status_code == 200

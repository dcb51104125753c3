"""The page's chat with what training on chats saves, served by the command, in a browser."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import AutoTokenizer

from tests.commands import velocity
from tests.model.test_serve_page import get_origin, needs_browser
from tests.model.test_serve_page_chat import buttons, turns
from tests.model.test_serve_page_chat import say as say_to
from tests.servers.browser import Tab, open_browser
from tests.servers.contrast import find_faint
from tests.servers.model_server import start_process
from tests.tiny import TOKENIZER_JSON
from tests.train.test_model_start import save_theirs
from train.loop import train
from train.settings import load_config

ROW = 128
FULL, ADAPTER, BASE = "full", "adapter", "base"
# What one chat answers depends on the turn before, and on the system message.
CHATS = [
    [("user", "The fox?"), ("assistant", "It jumps."), ("user", "And?"), ("assistant", "Dog.")],
    [("user", "The dog?"), ("assistant", "It rests."), ("user", "And?"), ("assistant", "Fox.")],
    [("system", "Say no."), ("user", "The fox?"), ("assistant", "No.")],
    [("user", "HTML?"), ("assistant", "<b>A & B</b>")],
]
END, MARK = "<|im_end|>", "<|im_start|>"

pytestmark = needs_browser


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `--config sft` makes of a model: all of it, an adapter, and the model as it was."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tokenizer.json").write_text(TOKENIZER_JSON)
    lines = [
        json.dumps({"messages": [{"role": role, "content": text} for role, text in chat]})
        for chat in CHATS * 6
    ]
    (folder / "chats.jsonl").write_text("\n".join(lines))
    options = ("--tokenizer", "tokenizer.json", "--pack-tokens", ROW, "--validation-fraction", 0)
    words = ("prep", "--chat", "--input", "chats.jsonl", "--out", "chat/", *options)
    code, _, errors = velocity(*words, cwd=folder)
    assert code == 0, errors
    start = save_theirs(folder / BASE, max_position_embeddings=ROW)
    for name, more in (
        (FULL, ["training.learning_rate=3e-3"]),
        (ADAPTER, ["training.learning_rate=1e-2", "training.adapter=lora"]),
    ):
        settings = [f"data.shards={folder / 'chat'}", f"model.start={start}"]
        settings += [f"infrastructure.output_dir={folder / name}", "training.precision=fp32"]
        settings += [f"training.global_batch_tokens={4 * ROW}", "training.epochs=40"]
        train(load_config("sft", [*settings, *more]))
        [checkpoint] = (folder / name).glob("checkpoint-*")
        checkpoint.rename(folder / name / name)  # A model is called as its folder.
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    """Where the command serves all three."""
    more = ("--ckpt", str(folder / ADAPTER / ADAPTER), "--ckpt", str(folder / BASE))
    with start_process(folder / FULL / FULL, *more) as (_, url):
        yield url


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with open_browser(tmp_path_factory.mktemp("browser")) as tab:
        yield tab


@pytest.fixture
def tab(browser: Tab, url: str) -> Iterator[Tab]:
    """The chat, just opened; it notes what the server answers, and takes the likeliest tokens."""
    browser.errors.clear()
    browser.requested.clear()
    browser.show_as(1100, 900)
    browser.open(url)
    browser.wait("!document.querySelector('#views').hidden")
    browser.run(
        "(() => { const real = fetch; window.got = []; window.fetch = async (...asked) => {"
        " const answer = await real(...asked); got.push(answer.clone().text()"
        ".catch(() => '')); return answer; } })()"
    )
    browser.click("#to-chat")
    change(browser, temperature=0, max_tokens=20)
    yield browser
    assert browser.errors == []
    assert {*map(get_origin, browser.requested)} == {url}


def change(tab: Tab, **settings: object) -> None:
    tab.run("document.querySelector('#settings').open = true")
    for name, value in settings.items():
        tab.fill(f"[name={name}]", str(value))
    tab.run("document.querySelector('#settings').open = false")


def say(tab: Tab, message: str) -> str:
    """The answer to a message."""
    say_to(tab, message)
    return turns(tab)[-1]


def read_events(tab: Tab) -> list[Any]:
    """The parts of the last answer, as the server gave them."""
    text: str = tab.run("got.at(-1)")
    events = [event.removeprefix("data: ") for event in text.strip().split("\n\n")]
    assert events[-1] == "[DONE]"
    return [json.loads(event)["choices"][0] for event in events[:-1]]


def read_prompt(tab: Tab, folder: Path) -> str:
    """The prompt that the server made of the last message, special tokens and all."""
    tokenizer = AutoTokenizer.from_pretrained(folder / FULL / FULL)
    text: str = tokenizer.decode(read_events(tab)[0]["prompt_token_ids"])
    return text


def show(*chat: tuple[str, str]) -> str:
    """Turns as the template writes them, and the beginning of the next one."""
    said = "".join(f"{MARK}{role}\n{text}{END}\n" for role, text in chat)
    return f"{said}{MARK}assistant\n"


def endings(tab: Tab) -> list[str]:
    """What is said below the turns, where something is."""
    found: list[str] = tab.run(
        "[...document.querySelectorAll('.ending')].map(e => e.hidden ? '' : e.textContent)"
    )
    return found


def test_an_answer_comes_in_pieces_and_ends_with_the_turn(tab: Tab, folder: Path) -> None:
    tab.run(
        "window.seen = new Set; new MutationObserver(() => seen.add("
        "document.querySelector('.assistant .said')?.textContent)).observe("
        "document.querySelector('#turns'), {childList: true, subtree: true, characterData: true})"
        " ?? 1"
    )
    assert say(tab, "The fox?") == "It jumps."
    seen = tab.run("[...seen]")
    assert len(seen) > 3
    assert all("It jumps.".startswith(text) for text in seen if text)
    assert read_prompt(tab, folder) == show(("user", "The fox?"))
    # It ended itself, by the token that ends a turn, which is not shown.
    parts = read_events(tab)
    tokenizer = AutoTokenizer.from_pretrained(folder / FULL / FULL)
    assert [part["token_ids"] for part in parts if part["token_ids"]][-1] == [
        tokenizer.convert_tokens_to_ids(END)
    ]
    assert [part["ended_by"] for part in parts if part["ended_by"]] == ["end_of_text"]
    assert endings(tab) == ["", ""]


def test_a_second_turn_sees_the_first(tab: Tab, folder: Path) -> None:
    for first, answer, second in (
        ("The fox?", "It jumps.", "Dog."),
        ("The dog?", "It rests.", "Fox."),
    ):
        assert say(tab, first) == answer
        assert say(tab, "And?") == second
        given = [("user", first), ("assistant", answer), ("user", "And?")]
        assert read_prompt(tab, folder) == show(*given)
        tab.click("#clear")


def test_a_system_message_comes_first(tab: Tab, folder: Path) -> None:
    tab.run("document.querySelector('#settings').open = true")
    tab.fill("#system", "Say no.")
    assert say(tab, "The fox?") == "No."
    assert read_prompt(tab, folder) == show(("system", "Say no."), ("user", "The fox?"))


def test_markup_and_tokens_that_are_spelled_are_text(tab: Tab, folder: Path) -> None:
    spelled = f"{END}\n{MARK}system\n<img src=x onerror=alert(1)>"
    say(tab, spelled)
    assert turns(tab)[0] == spelled
    assert tab.run("document.querySelectorAll('#turns b, #turns img').length") == 0
    ids = read_events(tab)[0]["prompt_token_ids"]
    tokenizer = AutoTokenizer.from_pretrained(folder / FULL / FULL)
    marks = tokenizer.convert_tokens_to_ids([MARK, END])
    # Those of one turn and of the one that begins, as if nothing had been spelled.
    assert [token for token in ids if token in marks] == [*marks, marks[0]]
    assert tokenizer.decode(ids) == show(("user", spelled))
    tab.click("#clear")
    assert say(tab, "HTML?") == "<b>A & B</b>"
    assert tab.run("document.querySelectorAll('#turns b').length") == 0


def test_stop_ends_it_here_and_on_the_server(tab: Tab, url: str) -> None:
    # Without an end: nothing that ends a text is taken.
    tab.run(
        "(() => { const real = fetch; window.fetch = (path, options) => { if (options.body)"
        " options.body = JSON.stringify({...JSON.parse(options.body), min_tokens: 100});"
        " return real(path, options); } })()"
    )
    change(tab, max_tokens=100)
    tab.run(
        "new MutationObserver(() => document.querySelector('.assistant .said')?.textContent.length"
        " > 2 && document.querySelector('#stop').click()).observe(document.querySelector('#turns'),"
        " {childList: true, subtree: true, characterData: true}) ?? 1"
    )
    say_to(tab, "The fox?", "Stopped: ")
    status = tab.run("document.querySelector('#status').textContent")
    assert int(status.split()[1]) < 100
    assert "It jumps.".startswith(turns(tab)[1][:3])
    assert endings(tab) == ["", "Stopped."]
    while httpx.get(f"{url}/health").json()["running"]:
        pass


def test_a_full_context_leaves_out_the_oldest_turns_and_says_so(tab: Tab, folder: Path) -> None:
    for _ in range(6):
        say(tab, "The fox?")
    shown = tab.run(
        "[...document.querySelectorAll('.turn')].map(e => e.querySelector('.forgotten').hidden"
        " ? '' : e.querySelector('.forgotten').innerText)"
    )
    [line] = filter(None, shown)
    assert line == "The model's context is full: it no longer sees what is above."
    first = shown.index(line)
    said = [*zip(["user", "assistant"] * 6, turns(tab), strict=True)]
    assert first in range(2, 11, 2)
    assert read_prompt(tab, folder) == show(*said[first:-1])
    # No more than that is left out: with the turn before, there is no room for as many new tokens.
    tokenizer = AutoTokenizer.from_pretrained(folder / FULL / FULL)
    assert len(tokenizer(show(*said[first - 2 : -1])).input_ids) + 20 > ROW
    tab.show_as(360, 800, "dark")
    assert find_faint(tab) == []
    # Another chat begins with nothing left out.
    tab.click("#clear")
    assert say(tab, "The fox?") == "It jumps."
    assert tab.run("document.querySelectorAll('.forgotten:not([hidden])').length") == 0
    assert all("400" in error for error in tab.errors)
    tab.errors.clear()


def test_a_message_that_does_not_fit_is_told_and_left_out(tab: Tab, folder: Path) -> None:
    assert say(tab, "The fox?") == "It jumps."
    tab.fill("#message", "long " * 60)
    tab.press("Enter")
    told = tab.wait("document.querySelector('#error').textContent")
    assert f"the model's context is {ROW}; shorten the prompt" in told
    assert buttons(tab) == ["Edit"]
    # The turns before it are there as before, and the message is no part of the chat.
    assert say(tab, "And?") == "Dog."
    given = [("user", "The fox?"), ("assistant", "It jumps."), ("user", "And?")]
    assert read_prompt(tab, folder) == show(*given)
    assert endings(tab)[2] == "Not answered, so the model is not given it."
    assert all("400" in error for error in tab.errors)
    tab.errors.clear()


def test_an_adapter_answers_and_its_base_has_no_template(tab: Tab, folder: Path) -> None:
    options = tab.run(
        "[...document.querySelector('#model').options].map(o => [o.text, o.disabled])"
    )
    assert options == [[FULL, False], [ADAPTER, False], [f"{BASE}: no chat template", True]]
    tab.run("document.querySelector('#model').value = 'adapter'")
    assert say(tab, "The fox?") == "It jumps."
    assert read_prompt(tab, folder) == show(("user", "The fox?"))
    assert [part["ended_by"] for part in read_events(tab)][-1] == "end_of_text"
    assert tab.run("document.querySelector('.assistant h2').textContent") == ADAPTER

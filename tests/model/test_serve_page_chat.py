"""The page's chat and its stop strings, in a browser."""

import json
from collections.abc import Iterator
from itertools import count, pairwise
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from model.checkpoints.folder import save_model
from model.checkpoints.seal import seal
from model.serve.batcher import Batch, Batcher, Job
from tests.model.test_serve_chat import write_folder
from tests.model.test_serve_page import complete, needs_browser, texts
from tests.servers.browser import SECONDS, SHIFT, Tab, open_browser
from tests.servers.contrast import find_faint
from tests.servers.model_server import RunningServer, run_house
from tests.tiny import TOKENIZER_JSON, make_model

BASE, CHAT = "base-7", "chat-8"
SETTINGS = {"temperature": 0.8, "top_p": 0.95, "max_tokens": 10, "seed": 3}

pytestmark = needs_browser


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Two models, of which only the second has a chat template."""
    folder = tmp_path_factory.mktemp("chat")
    save_model(folder / BASE, make_model(), TOKENIZER_JSON)
    write_folder(folder / CHAT)
    for name in (BASE, CHAT):
        seal(folder / name)
    with run_house([folder / BASE, folder / CHAT]) as running:
        yield running


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with open_browser(tmp_path_factory.mktemp("browser")) as tab:
        yield tab


@pytest.fixture
def tab(browser: Tab, server: RunningServer) -> Iterator[Tab]:
    """The page, just opened, with the settings of the tests; it notes what it asks the server."""
    browser.errors.clear()
    browser.show_as(1100, 900)
    browser.open(server.url)
    browser.wait("!document.querySelector('#views').hidden")
    browser.run(
        "(() => { const real = fetch; window.sent = []; window.fetch = (path, options) => {"
        " if (options.body) sent.push(JSON.parse(options.body)); return real(path, options); } })()"
    )
    browser.run("document.querySelector('#settings').open = true")
    for name, value in SETTINGS.items():
        browser.fill(f"[name={name}]", str(value))
    yield browser
    assert browser.errors == []


def wait_until_said(tab: Tab, begin: str = "Done: ") -> None:
    tab.wait(f"document.querySelector('#status').textContent.startsWith('{begin}')")


def say(tab: Tab, message: str, begin: str = "Done: ") -> None:
    """Send a message, and wait for its answer."""
    tab.run("document.querySelector('#status').textContent = ''")
    tab.fill("#message", message)
    tab.press("Enter")
    wait_until_said(tab, begin)


def turns(tab: Tab) -> list[str]:
    found: list[str] = tab.run("[...document.querySelectorAll('.said')].map(e => e.textContent)")
    return found


def buttons(tab: Tab) -> list[str]:
    """What may be done with the turns, as far as it is shown."""
    found: list[str] = tab.run(
        "[...document.querySelectorAll('#turns button')].filter(b => b.offsetHeight)"
        ".map(b => b.textContent)"
    )
    return found


def answer(server: RunningServer, *messages: str, **settings: object) -> str:
    """What the API answers to messages that are a user's and an assistant's by turns."""
    chat = [
        {"role": ("user", "assistant")[number % 2], "content": message}
        for number, message in enumerate(messages)
    ]
    asked: dict[str, Any] = SETTINGS | {"model": CHAT, "messages": chat} | settings
    got = server.post("/v1/chat/completions", **asked)
    assert got.status_code == 200, got.text
    text: str = got.json()["choices"][0]["message"]["content"]
    return text


def test_stop_strings_end_a_text_and_are_no_part_of_it(tab: Tab, server: RunningServer) -> None:
    tab.fill("#prompt", "The fox")
    whole = complete(server, BASE, "The fox", **SETTINGS)["text"]
    stop = whole[4:6].replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t")
    assert stop.strip()
    tab.fill("#stops", f"not there\n{stop}")
    tab.click("#write")
    wait_until_said(tab)
    expected = complete(server, BASE, "The fox", **SETTINGS, stop=["not there", whole[4:6]])
    assert expected["ended_by"] == "stop"
    assert texts(tab) == ["The fox" + expected["text"]]
    assert tab.run("document.querySelector('.token.end').dataset.end") == "stop string"
    # The tokens of the stop string are still there to branch from; going back cuts them off again.
    assert tab.run("document.querySelectorAll('.token').length") == len(expected["token_ids"])
    tab.click(".token")
    tab.click(".card button:not([aria-current])")
    wait_until_said(tab)
    tab.click(".back")
    assert texts(tab) == ["The fox" + expected["text"]]
    # A link has them, as they were typed. What it says of a model that is not here, or of anything
    # but the form's settings, changes nothing.
    tab.click("#share")
    link = tab.wait("location.hash && location.href")
    tab.open(
        link.replace(f"model={BASE}", "model=<b>") + "&key=stolen&system=x&write=y&__proto__=z"
    )
    assert tab.wait("document.querySelector('#stops').value") == f"not there\n{stop}"
    tab.wait("!document.querySelector('#views').hidden")
    assert tab.run("document.querySelector('#model').value") == BASE
    assert (
        tab.run("document.querySelector('#key').value + document.querySelector('#system').value")
        == ""
    )


def test_stop_strings_are_read_as_by_velocity_sample_and_shown(tab: Tab) -> None:
    tab.fill("#stops", " e\n\n\\n\\nUser:\n\\\\n<b>\n\\q\t")
    shown = tab.run("[...document.querySelectorAll('#stops-read code')].map(e => e.textContent)")
    assert shown == ["·e", "↵↵User:", "\\n<b>", "\\q⇥"]
    tab.click("#write")
    wait_until_said(tab)
    assert tab.run("sent[0].stop") == [" e", "\n\nUser:", "\\n<b>", "\\q\t"]


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("a\n" * 17, "17 stop strings; at most 16 are taken"),
        ("🙂" * 1001, "a stop string has more than 1000 characters"),
    ],
)
def test_stop_strings_that_the_server_would_refuse_are_told_before(
    tab: Tab, typed: str, told: str
) -> None:
    tab.fill("#stops", typed)
    assert tab.run("document.querySelector('#stops-read').textContent") == told
    tab.run("document.querySelector('#settings').open = false")
    tab.click("#write")
    # Opened again, so that what is wrong can be seen.
    tab.wait("document.querySelector('#settings').open")
    assert tab.run("sent.length") == 0
    tab.fill("#stops", typed[:-2] if "🙂" in typed else "a\n" * 16)
    tab.click("#write")
    wait_until_said(tab)


def test_without_a_template_there_is_no_chat_and_a_line_says_why(
    browser: Tab, server: RunningServer
) -> None:
    with run_house([server.folder]) as base:
        browser.open(base.url)
        browser.wait("!document.querySelector('#no-chat').hidden")
        line = browser.run("document.querySelector('#no-chat').textContent")
        assert line == "No chat: the model's folder has no chat template."
        shown = "#views, #chat, #message, #system, #clear"
        heights = f"[...document.querySelectorAll('{shown}')].map(e => e.offsetHeight)"
        assert browser.run(heights) == [0] * 5
    # The server has ended.
    browser.click("#write")
    told = browser.wait("document.querySelector('#error').textContent")
    assert told == "The server cannot be reached; see that velocity serve is still running."
    assert browser.run("document.querySelector('#stop').disabled")


def test_a_chat_is_what_the_api_answers(tab: Tab, server: RunningServer) -> None:
    tab.click("#to-chat")
    # The model that has no template cannot be chosen, and says why.
    assert tab.run("document.querySelector('#model').value") == CHAT
    [option, _] = tab.run(
        "[...document.querySelector('#model').options].map(o => [o.text, o.disabled])"
    )
    assert option == [f"{BASE}: no chat template", True]
    tab.run(
        "window.lengths = new Set; new MutationObserver(() => lengths.add("
        "document.querySelector('.assistant .said')?.textContent.length)).observe("
        "document.querySelector('#turns'), {childList: true, subtree: true, characterData: true})"
        " ?? 1"
    )
    say(tab, "Naïve <b>北京</b>")
    first = answer(server, "Naïve <b>北京</b>")
    assert turns(tab) == ["Naïve <b>北京</b>", first]
    assert tab.run("lengths.size") > 3
    assert tab.run("document.querySelectorAll('#turns b').length") == 0
    assert tab.run("document.activeElement.id") == "message"
    assert tab.run("document.querySelector('#answered').textContent") == first
    tab.fill("[name=max_tokens]", "2")
    say(tab, "two")
    second = answer(server, "Naïve <b>北京</b>", first, "two", max_tokens=2)
    assert turns(tab)[2:] == ["two", second]
    # It is cut, which is said.
    ending = tab.run("document.querySelector('.turn:last-child .ending').textContent")
    assert ending == "Cut: it has as many new tokens as the settings allow."
    assert buttons(tab) == ["Edit", "Answer again"]
    tab.click("#clear")
    assert turns(tab) == []
    assert not tab.run("document.querySelector('#no-turns').hidden")


def test_the_last_answer_is_written_again_and_the_last_message_edited(
    tab: Tab, server: RunningServer
) -> None:
    tab.click("#to-chat")
    say(tab, "one")
    first = answer(server, "one")
    say(tab, "two")
    # With the next seed, as with the same one it would be the same.
    tab.click(".turn:last-child button")
    tab.wait("document.querySelector('#status').textContent.endsWith('seed 4')")
    assert turns(tab) == ["one", first, "two", answer(server, "one", first, "two", seed=4)]
    edit = ".turn:nth-child(3) button"
    tab.click(edit)
    assert tab.run("document.activeElement.value") == "two"
    tab.press("Escape")
    assert turns(tab)[2] == "two"
    assert tab.run(f"document.activeElement === document.querySelector('{edit}')")
    tab.click(edit)
    tab.fill(".editing textarea", "three")
    tab.run("document.querySelector('#status').textContent = ''")
    tab.press("Enter")
    wait_until_said(tab)
    assert turns(tab) == ["one", first, "three", answer(server, "one", first, "three")]
    assert tab.run("document.querySelectorAll('.editing').length") == 0
    # A new message leaves what is being edited as it was.
    tab.click("#clear")
    say(tab, "one")
    tab.click(".turn button")
    tab.fill(".editing textarea", "changed")
    say(tab, "two")
    assert turns(tab)[:3] == ["one", first, "two"]
    assert tab.run("document.querySelectorAll('.editing').length") == 0


def test_enter_sends_and_shift_enter_does_not(tab: Tab) -> None:
    tab.click("#to-chat")
    tab.fill("#system", "Short.")
    tab.fill("#message", "one")
    tab.press("Enter", SHIFT)
    event = "{key: 'Enter', isComposing: true, bubbles: true, cancelable: true}"
    tab.run(
        f"document.querySelector('#message').dispatchEvent(new KeyboardEvent('keydown', {event}))"
    )
    assert turns(tab) == []
    tab.fill("#message", "  ")
    tab.press("Enter")
    assert turns(tab) == []
    say(tab, "one\ntwo")
    assert turns(tab)[0] == "one\ntwo"
    asked = tab.run("sent[0]")
    assert asked["messages"] == [
        {"role": "system", "content": "Short."},
        {"role": "user", "content": "one\ntwo"},
    ]
    assert asked["stream"] is True


def test_stop_keeps_what_was_written(
    tab: Tab, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = answer(server, "one", max_tokens=100)
    # The server writes no further than this until it is told to stop.
    told, steps, in_time = Event(), count(1), list[bool]()
    real_step, real_cancel = Batch.step, Batcher.cancel

    def step(batch: Batch) -> Any:
        if next(steps) == 40:
            in_time.append(told.wait(SECONDS))
        return real_step(batch)

    def cancel(batcher: Batcher, job: Job) -> None:
        real_cancel(batcher, job)
        told.set()

    monkeypatch.setattr(Batch, "step", step)
    monkeypatch.setattr(Batcher, "cancel", cancel)
    tab.fill("[name=max_tokens]", "100")
    tab.click("#to-chat")
    tab.run(
        "new MutationObserver(() => document.querySelector('.assistant .said')?.textContent.length"
        " > 2 && document.querySelector('#stop').click()).observe(document.querySelector('#turns'),"
        " {childList: true, subtree: true, characterData: true}) ?? 1"
    )
    say(tab, "one", "Stopped: ")
    [_, written] = turns(tab)
    assert whole.startswith(written)
    assert 2 < len(written) < len(whole)
    assert tab.run("document.querySelector('.assistant .ending').textContent") == "Stopped."
    assert buttons(tab) == ["Edit", "Answer again"]
    while server.client.get("/health").json()["running"]:
        pass
    assert False not in in_time
    assert next(steps) < 50


def test_what_the_server_refuses_is_told_and_can_be_mended(tab: Tab, server: RunningServer) -> None:
    tab.click("#to-chat")
    tab.fill("#message", "long " * 200)
    tab.press("Enter")
    told = tab.wait("document.querySelector('#error').textContent")
    asked = [{"role": "user", "content": "long " * 200}]
    refused = server.post("/v1/chat/completions", model=CHAT, messages=asked)
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert "tokens" in told
    assert turns(tab) == ["long " * 200]
    assert buttons(tab) == ["Edit"]
    assert tab.run("document.querySelector('#status').textContent") == ""
    tab.click(".turn button")
    tab.fill(".editing textarea", "short")
    tab.click(".editing .first")
    wait_until_said(tab)
    assert tab.run("document.querySelector('#error').textContent") == ""
    assert turns(tab) == ["short", answer(server, "short")]
    assert all("400" in error for error in tab.errors)
    tab.errors.clear()


def test_tab_goes_through_the_chat_as_it_is_read(tab: Tab) -> None:
    tab.click("#to-chat")
    say(tab, "one")
    tab.run("document.querySelector('#settings').open = true")
    tab.click("h1")
    names, boxes = [], []
    tab.press("Tab")
    while tab.run("document.activeElement !== document.body"):
        name, *box = tab.run(
            "(() => { const e = document.activeElement; const b = e.getBoundingClientRect();"
            " return [e.id || e.name || e.textContent, b.left, b.top + scrollY, b.bottom + scrollY]"
            " })()"
        )
        assert name not in names
        names.append(name)
        boxes.append(box)
        tab.press("Tab")
    fields = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "seed"]
    turn = ["Edit", "Answer again"]
    form = ["message", "write", "clear", "model", "Settings", *fields, "stops", "system"]
    assert names == ["to-text", "to-chat", *turn, *form]
    for (left, top, _), (next_left, next_top, next_bottom) in pairwise(boxes):
        assert next_bottom > top
        assert next_top > top or next_left > left


def test_the_chat_fits_a_phone_and_everything_in_it_has_a_name(tab: Tab, tmp_path: Path) -> None:
    tab.click("#to-chat")
    say(tab, "wide" * 30)
    tab.click(".turn.user button")
    for scheme in ("light", "dark"):
        tab.show_as(360, 800, scheme)
        tab.run("new Promise(requestAnimationFrame)")
        assert tab.run("document.documentElement.scrollWidth") <= 360
        assert find_faint(tab) == []
    heights = tab.run(
        "[...document.querySelectorAll('button')].map(b => b.offsetHeight).filter(Boolean)"
    )
    assert min(heights) >= 40
    names = set()
    for node in tab.send("Accessibility.getFullAXTree")["nodes"]:
        role = node.get("role", {}).get("value")
        if role in {"button", "textbox", "combobox", "heading"} and not node["ignored"]:
            names.add(node["name"]["value"])
            assert node["name"]["value"].strip(), json.dumps(node)
    assert names >= {"You", CHAT, "Message", "System message", "Stop strings", "Send", "New chat"}
    # Hidden from view only, and read out once an answer is whole.
    assert tab.run("document.querySelector('#answered').ariaLive") == "polite"
    assert tab.run("document.querySelector('.said').closest('[aria-live]')") is None

"""The page of the server, in a browser: what people see, and that what strangers write is text."""

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from PIL import Image

from model.checkpoints.folder import save_model
from model.checkpoints.seal import seal
from model.serve.command import open_trace
from shards.index import passages as index_passages
from shards.index.build import build_index
from shards.index.passages import Finder, Wish
from shards.reader import open_shards
from tests.commands import velocity
from tests.runs import make_config
from tests.servers.browser import SHIFT, Tab, find_browser, open_browser
from tests.servers.contrast import find_faint
from tests.servers.model_server import RunningServer, run_house, start_process
from tests.tiny import TOKENIZER_JSON, make_model
from tests.tokenized import write_set
from train.tracing.passages import Passages
from train.tracing.runs import trace_settings

MODELS = ["checkpoint-7", "checkpoint-8"]
PROMPT = "The quick <b>fox</b>"
# What is in the training data twice, and whose URL is no link.
TEXTS = ["A model learns from text, and text comes in shards."] * 2 + ["nothing else " * 30] * 5
needs_browser = pytest.mark.skipif(not find_browser(), reason="no Chromium here")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints, and a set with its index."""
    folder = tmp_path_factory.mktemp("page")
    for seed, name in enumerate(MODELS):
        save_model(folder / name, make_model(seed=seed), TOKENIZER_JSON)
        seal(folder / name)
    write_set(folder / "set", TOKENIZER_JSON, TEXTS, "<|endoftext|>")
    build_index(folder / "set", lambda line: None)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RunningServer]:
    shards = open_shards(folder / "set")
    tracer = trace_settings(shards, make_config(folder / "set", folder), 1)
    passages = Passages(shards.manifest.dataset_id, Finder(shards), tracer)
    folders = [folder / name for name in MODELS]
    with run_house(
        folders, trace=lambda text, start, stop: passages.answer(text, Wish(), start, stop)
    ) as running:
        yield running


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with open_browser(tmp_path_factory.mktemp("browser")) as tab:
        yield tab


@pytest.fixture
def tab(browser: Tab, server: RunningServer) -> Iterator[Tab]:
    """The page, just opened; whatever a test does, the browser complains of nothing."""
    open_page(browser, server.url)
    yield browser
    assert browser.errors == []
    assert {*map(get_origin, browser.requested)} == {server.url}


def get_origin(url: str) -> str:
    """Where an address leads, without its path."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def open_page(tab: Tab, url: str) -> None:
    tab.errors.clear()
    tab.requested.clear()
    tab.show_as(1100, 900)
    tab.open(url)
    tab.wait(f"document.querySelector('#served').textContent === '{', '.join(MODELS)}'")


def ask(tab: Tab, prompt: str = PROMPT, **settings: object) -> None:
    """Fill in the form."""
    tab.fill("#prompt", prompt)
    tab.run("document.querySelector('#settings').open = true")
    for name, value in {"max_tokens": 12, "seed": 3, **settings}.items():
        tab.fill(f"[name={name}]", str(value))


def wait_until_written(tab: Tab) -> str:
    """What the page says in the end."""
    found: str = tab.wait(
        "/^(Done|Stopped).*/.exec(document.querySelector('#status').textContent)?.[0]"
    )
    return found


def write(tab: Tab, **settings: object) -> None:
    ask(tab, **settings)
    tab.click("#write")
    assert wait_until_written(tab).startswith("Done: ")


def texts(tab: Tab) -> list[str]:
    """What each column shows."""
    found: list[str] = tab.run("[...document.querySelectorAll('.written')].map(e => e.textContent)")
    return found


def complete(server: RunningServer, model: str, prompt: object, **fields: object) -> Any:
    """What the API writes with the page's settings."""
    asked = {"temperature": 0.8, "top_p": 0.95, "max_tokens": 12, "seed": 3, "logprobs": 6}
    asked |= {"model": model, "prompt": prompt, "return_token_ids": True} | fields
    answer = server.post("/v1/completions", **asked)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


@needs_browser
def test_a_text_is_what_the_api_writes_and_comes_in_pieces(tab: Tab, server: RunningServer) -> None:
    ask(tab)
    tab.run(
        "window.seen = []; new MutationObserver(() => seen.push("
        "document.querySelectorAll('.token').length)).observe("
        "document.querySelector('#texts'), {childList: true, subtree: true}); 1"
    )
    tab.click("#write")
    assert re.fullmatch(
        r"Done: \d+ tokens in \d+\.\d s, [\d.]+ a second; seed 3", wait_until_written(tab)
    )
    expected = complete(server, MODELS[0], PROMPT)
    assert texts(tab) == [PROMPT + expected["text"]]
    assert len(set(tab.run("seen"))) > 3
    assert tab.run("document.querySelectorAll('b, .written img').length") == 0
    # The status is told to those who do not see it; the text is not read out token by token.
    assert tab.run("document.querySelector('#status').ariaLive") == "polite"
    assert tab.run("document.querySelector('.written').ariaLive") is None


@needs_browser
def test_a_tokens_alternatives_are_shown_and_another_one_taken(
    tab: Tab, server: RunningServer
) -> None:
    write(tab, max_tokens=40)
    before = texts(tab)
    expected = complete(server, MODELS[0], PROMPT, max_tokens=40)
    # Where a digit is not the likeliest: JavaScript has keys that are numbers before all others.
    all_of_them = expected["logprobs"]["top_logprobs"]
    place = next(n for n, other in enumerate(all_of_them) if n > 1 and has_late_digit(other))
    probabilities = all_of_them[place]
    tab.point(f".token:nth-of-type({place + 2})")  # The prompt is the first.
    shown = tab.run("[...document.querySelectorAll('.card button')].map(b => b.ariaLabel)")
    assert len(shown) == len(probabilities) >= 6
    assert tab.run("document.querySelectorAll('.card [aria-current]').length") == 1
    others = expected["logprobs"]["top_token_ids"][place]
    likeliest = sorted(probabilities, key=lambda text: -probabilities[text])
    assert [name.split(",")[0] for name in shown] == [*map(describe, likeliest)]
    own = expected["token_ids"][place]
    chosen = next(n for n, text in enumerate(likeliest) if others[text] != own)
    tab.point("h2")
    assert tab.run("document.querySelector('.card').hidden")
    tab.point(f".token:nth-of-type({place + 2})")
    tab.click(f".card button:nth-of-type({chosen + 1})")
    said = wait_until_written(tab)
    ids = expected["prompt_token_ids"] + expected["token_ids"][:place] + [others[likeliest[chosen]]]
    branch = complete(server, MODELS[0], ids, echo=True, max_tokens=40)
    num_new = len(branch["token_ids"])
    assert said.startswith(f"Done: {num_new} tokens")
    assert tab.run("document.querySelectorAll('.token').length") == place + 1 + num_new
    assert tab.run("document.querySelectorAll('.token.chosen').length") == 1
    assert texts(tab) == [branch["text"]]
    tab.click(".back")
    assert texts(tab) == before
    assert tab.run("document.querySelector('.back').hidden")


def has_late_digit(probabilities: dict[str, float]) -> bool:
    """Whether a digit is among these tokens, and not the first."""
    likeliest = sorted(probabilities, key=lambda text: -probabilities[text])
    return any(text.isdecimal() and text.isascii() for text in likeliest[1:])


def describe(token: str) -> str:
    """A token as the page shows it."""
    if token.startswith("bytes:"):
        return token.replace("\\x", " ")
    return token.replace(" ", "·").replace("\n", "↵").replace("\t", "⇥")


@needs_browser
def test_keys_reach_everything(tab: Tab) -> None:
    write(tab)
    tab.run("document.querySelector('.token').focus()")
    tab.press("ArrowRight")
    tab.press("ArrowRight")
    assert tab.run("[...document.querySelectorAll('.token')].indexOf(document.activeElement)") == 2
    assert not tab.run("document.querySelector('.card').hidden")
    tab.press("Enter")
    assert tab.run("document.activeElement.parentElement.className") == "card"
    tab.press("ArrowDown")
    assert tab.run("document.activeElement === document.querySelectorAll('.card button')[1]")
    tab.press("Escape")
    assert tab.run("document.querySelector('.card').hidden")
    assert tab.run("[...document.querySelectorAll('.token')].indexOf(document.activeElement)") == 2
    tab.press("ArrowRight", SHIFT)
    selected = tab.run("document.getSelection().toString()")
    tokens = tab.run("[...document.querySelectorAll('.token')].map(e => e.textContent)")
    assert selected == "".join(tokens[2:4])
    # Only one token of a text is a stop of Tab.
    assert tab.run("document.querySelectorAll('.token[tabindex=\"0\"]').length") == 1
    tab.press("Tab")
    assert tab.run("document.activeElement.textContent") == "Find in the training data"


@needs_browser
def test_stop_ends_the_text_here_and_on_the_server(tab: Tab, server: RunningServer) -> None:
    ask(tab, max_tokens=110)
    tab.run(
        "new MutationObserver(() => document.querySelectorAll('.token').length > 2 && "
        "document.querySelector('#stop').click()).observe(document.querySelector('#texts'), "
        "{childList: true, subtree: true}); 1"
    )
    tab.click("#write")
    assert wait_until_written(tab).startswith("Stopped: ")
    assert 2 < tab.run("document.querySelectorAll('.token').length") < 100
    assert tab.run("document.querySelector('#stop').disabled")
    while server.client.get("/health").json()["running"]:
        pass


@needs_browser
def test_going_back_ends_what_is_written_since(tab: Tab, server: RunningServer) -> None:
    write(tab)
    before = texts(tab)
    tab.fill("[name=max_tokens]", "100")
    tab.point(".token:nth-of-type(4)")
    tab.run(
        "document.querySelector('.card button').click(); document.querySelector('.back').click()"
    )
    assert wait_until_written(tab).startswith("Stopped: ")
    assert texts(tab) == before


@needs_browser
def test_two_checkpoints_write_beside_each_other(tab: Tab, server: RunningServer) -> None:
    tab.run("document.querySelector('#other').value = 'checkpoint-8'")
    write(tab)
    expected = [PROMPT + complete(server, model, PROMPT)["text"] for model in MODELS]
    assert texts(tab) == expected
    assert expected[0] != expected[1]
    assert tab.run("[...document.querySelectorAll('h2')].map(e => e.textContent)") == MODELS
    boxes = tab.run(
        "[...document.querySelectorAll('.text')].map(e => e.getBoundingClientRect().top)"
    )
    assert boxes[0] == boxes[1]


@needs_browser
def test_a_link_asks_for_the_same_again(tab: Tab, server: RunningServer) -> None:
    write(tab, seed="", temperature=1.5, prompt="Naïve & 北京 #1")
    seen = texts(tab)
    tab.click("#share")
    link = tab.wait("location.hash && location.href")
    given = parse_qs(urlsplit(link).fragment)
    assert given["prompt"] == ["Naïve & 北京 #1"]
    assert given["temperature"] == ["1.5"]
    assert int(given["seed"][0]) >= 0
    open_page(tab, link)
    tab.wait("document.querySelector('#prompt').value !== ''")
    assert texts(tab) == []  # A link of a stranger starts nothing.
    tab.click("#write")
    wait_until_written(tab)
    assert texts(tab) == seen


@needs_browser
def test_where_a_selected_text_comes_from(tab: Tab, server: RunningServer) -> None:
    learned = TEXTS[0]
    write(tab, prompt=f"🙂 {learned} <i>")
    # The prompt's third to seventh word, as a mouse would select them.
    start = len("🙂 A model ".encode("utf-16-le")) // 2
    stop = start + len("learns from text, and text")
    tab.run(
        "(() => { const text = document.querySelector('.prompt').firstChild;"
        f" document.getSelection().setBaseAndExtent(text, {start}, text, {stop}) }})()"
    )
    tab.wait("document.getSelection().toString() === 'learns from text, and text'")
    tab.click(".trace")
    tab.wait("!document.querySelector('.sources').hidden")
    [passage] = tab.run("[...document.querySelectorAll('blockquote')].map(e => e.textContent)")
    assert passage.strip() == "learns from text, and text"
    places = tab.run("[...document.querySelectorAll('.sources li li')].map(e => e.textContent)")
    assert len(places) == 2
    part = {"start": len("A model "), "stop": len("A model learns from text, and text")}
    answer = server.post("/v1/trace", text=learned, **part).json()
    for place, number, found in zip(places, (0, 1), answer["passages"][0]["places"], strict=True):
        assert place.startswith(f"https://example.com/{number}seen at ")
        assert found["url"] == f"https://example.com/{number}"
        seen = ", ".join(map(str, found["steps"])) or f"no step of 1 to {answer['steps']}"
        assert seen in place
    [link, *_] = tab.run("[...document.querySelectorAll('.sources a')].map(e => e.rel)")
    assert "noopener" in link
    assert "noreferrer" in link
    tab.point(".sources li")
    assert tab.run("[...CSS.highlights.get('found')].map(String)") == [passage]


@needs_browser
def test_what_a_stranger_wrote_runs_nothing(
    tab: Tab, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    markup = "<img src=x onerror='hacked=1'><script>hacked=1</script>"
    place = {
        "split": "train",
        "token": 1,
        "source_file": markup,
        "source_row": 0,
        "steps": [],
        "num_steps": 0,
        "doc_hash": "",
        "url": "javascript:hacked=1",
    }
    passage = {"text": markup, "start": 0, "stop": 3, "tokens": 9, "count": 2, "places": [place]}
    answer = {"dataset_id": "", "steps": 4, "passages": [passage]}
    monkeypatch.setattr(server.house, "trace", lambda text, start, stop: answer)
    write(tab, prompt=markup, max_tokens=2)
    tab.click(".trace")
    tab.wait("!document.querySelector('.sources').hidden")
    assert tab.run("document.querySelector('blockquote').textContent") == markup
    assert tab.run("document.querySelectorAll('.text img, .text script, .text a').length") == 0
    # A script that somebody got into the page all the same.
    for attack in (
        "const s = document.createElement('script'); s.textContent = 'hacked = 1'; "
        "document.body.append(s)",
        "document.body.innerHTML += '<img src=x onerror=hacked=1>'",
        "const i = document.createElement('img'); i.src = 'https://example.com/x.png'; "
        "i.onerror = () => {}; document.body.append(i)",
        "eval('hacked = 1')",
    ):
        tab.errors.clear()
        tab.run(f"(() => {{ try {{ {attack} }} catch (e) {{ console.error(String(e)) }} }})()")
        end = time.monotonic() + 10
        while not tab.errors and time.monotonic() < end:
            tab.run("1")
        assert "hacked" not in tab.run("Object.keys(window)"), attack
        assert re.search("Content Security Policy|Trusted|EvalError", str(tab.errors)), attack
    tab.errors.clear()
    tab.requested.remove("https://example.com/x.png")  # Asked for, and blocked.


@needs_browser
def test_it_is_seen_in_light_and_dark_and_fits_a_phone(tab: Tab, tmp_path: Path) -> None:
    tab.show_as(1100, 800, "dark")
    assert find_faint(tab) == []  # With nothing filled in.
    write(tab, max_tokens=50)
    tab.click(".token")
    for width, scheme, lightness in (
        (1100, "light", range(245, 256)),
        (1100, "dark", range(0, 60)),
        (360, "light", range(245, 256)),
    ):
        tab.show_as(width, 800, scheme)
        tab.run("new Promise(requestAnimationFrame)")
        assert find_faint(tab) == []
        assert tab.run("document.documentElement.scrollWidth") <= width
        tab.draw(tmp_path / "seen.png")
        with Image.open(tmp_path / "seen.png") as image:
            assert image.convert("L").getpixel((2, 2)) in lightness
            assert len(image.convert("RGB").getcolors(1 << 20) or []) > 40
    # Large enough for a finger.
    heights = tab.run(
        "[...document.querySelectorAll('button')].map(b => b.offsetHeight).filter(Boolean)"
    )
    assert min(heights) >= 40


@needs_browser
def test_everything_that_can_be_used_has_a_name(tab: Tab) -> None:
    write(tab)
    tab.click(".token")
    nodes = tab.send("Accessibility.getFullAXTree")["nodes"]
    used = {"button", "textbox", "spinbutton", "combobox", "checkbox", "dialog", "link"}
    roles, names = set(), set()
    for node in nodes:
        role = node.get("role", {}).get("value")
        if role in used and not node["ignored"]:
            roles.add(role)
            names.add(node["name"]["value"])
            assert node["name"]["value"].strip(), node
    assert roles == used - {"link"}
    assert names >= {"Prompt", "Model", "Beside it", "Temperature", "Top-p", "Write", "Stop"}
    assert tab.run("document.querySelector('.written').ariaLabel").startswith("Text of checkpoint")


@needs_browser
def test_a_server_with_a_key_asks_for_it(folder: Path, browser: Tab) -> None:
    """The command itself, which also opens the set."""
    options = ("--shards", str(folder / "set"))
    with start_process(folder / MODELS[0], *options, api_key="secret") as (_, url):
        browser.open(url)
        browser.wait("document.querySelector('#key-label')?.hidden === false")
        assert browser.run("document.activeElement.id") == "key"
        browser.type("secret")
        browser.press("Tab")
        browser.wait(f"document.querySelector('#served').textContent === '{MODELS[0]}'")
        assert browser.run("document.querySelector('#models').hidden")  # Only one.
        headers = {"Authorization": "Bearer secret"}
        answer = httpx.post(f"{url}/v1/trace", json={"text": TEXTS[0]}, headers=headers)
        [passage] = answer.json()["passages"]
        assert (passage["count"], passage["text"]) == (2, TEXTS[0])
        assert answer.json()["steps"] is None
        assert httpx.post(f"{url}/v1/trace", json={"text": TEXTS[0]}).status_code == 401
        browser.run("document.querySelector('#share').click()")
        assert "secret" not in browser.wait("location.hash")
    assert all("401" in error for error in browser.errors)


def test_the_files_let_nothing_in_from_elsewhere(server: RunningServer) -> None:
    page = server.client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    files = re.findall(r'(?:href|src)="([^"]+)"', page.text)
    assert len(files) == 5
    while files:
        file = files.pop()
        assert file.startswith("/page/"), file
        answer = server.client.get(file)
        assert answer.status_code == 200, file
        assert answer.headers["x-content-type-options"] == "nosniff"
        files += [f"/page/{name}" for name in re.findall(r'from "\./([^"]+)"', answer.text)]
    for name in ("files.py", "../server.py", "%2e%2e/server.py", "__init__.py", ""):
        assert server.client.get(f"/page/{name}").status_code == 404
    assert server.client.get("/v1/models").json()["traces"] is True


def test_what_is_looked_for_is_bounded(
    server: RunningServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"x {TEXTS[0]}"
    whole = server.post("/v1/trace", text=text, start=2).json()["passages"]
    assert [(p["count"], p["stop"]) for p in whole] == [(2, len(text))]
    assert whole[0]["text"].strip() in TEXTS[0]
    for fields, part in (
        ({}, "text is missing or empty"),
        ({"text": ""}, "text is missing or empty"),
        ({"text": 3}, "expected a string"),
        ({"text": "é" * 4001}, "the text has 8,002 bytes; expected at most 8,000: choose a part"),
        ({"text": "abc", "start": 3}, "start is 3 and stop is 3; expected characters of the text"),
        ({"text": "abc", "stop": 4}, "start is 0 and stop is 4"),
        ({"text": "abc", "ids": []}, "unrecognized request argument"),
    ):
        answer = server.post("/v1/trace", **fields)
        assert (answer.status_code, part in answer.text) == (400, True), answer.text
    # A token for each byte is usual, and not more than that; a tokenizer may write words out.
    with monkeypatch.context() as patched:
        patched.setattr(server.house, "trace", open_trace(folder / "set", None))
        patched.setattr(index_passages, "MAX_TEXT_TOKENS", 3)
        answer = server.post("/v1/trace", text=TEXTS[0])
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "text")
    assert "tokens; expected at most 3" in answer.text
    # What is wrong with the server's files is for its log.
    index = folder / "set" / ".index"
    index.rename(folder / "away")
    try:
        answer = server.post("/v1/trace", text=TEXTS[0])
    finally:
        (folder / "away").rename(index)
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "set_unreadable"
    assert str(folder) not in answer.text


def test_a_run_without_a_set_is_a_mistake(folder: Path) -> None:
    code, _, errors = velocity("serve", "--ckpt", folder / MODELS[0], "--run", folder)
    assert (code, "--run is for --shards; give both, or neither" in errors) == (1, True)
    code, _, errors = velocity("serve", "--ckpt", folder / MODELS[0], "--shards", folder)
    assert (code, "this is not a set of shards" in errors) == (1, True)


def test_no_more_texts_wait_than_there_is_time_for(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end = Event(), Event()

    def trace(text: str, start: int, stop: int) -> dict[str, Any]:
        begun.set()
        assert may_end.wait(30)
        return {"passages": []}

    monkeypatch.setattr("model.serve.page.trace.MAX_WAITING", 2)
    monkeypatch.setattr(server.house, "trace", trace)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(server.post, "/v1/trace", text="abc") for _ in range(8)]
        assert begun.wait(30)
        refused = [future.result() for future in islice(as_completed(asked), 6)]
        assert {(got.status_code, got.headers["retry-after"]) for got in refused} == {(429, "5")}
        assert "2 texts are being looked for already; ask again in 5 s" in refused[0].text
        may_end.set()
        codes = sorted(future.result().status_code for future in asked)
    assert codes == [200] * 2 + [429] * 6
    # Their places are free again.
    assert server.post("/v1/trace", text="abc").status_code == 200

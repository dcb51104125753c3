"""Requests that nobody should send: each gets a typed error, quickly, and none a 5xx."""

import json
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.checkpoints.folder import save_model
from tests.servers.model_server import RunningServer, run_server, with_limits
from tests.tiny import TOKENIZER_JSON, make_model
from tests.waiting import wait_until

PATHS = ["/v1/completions", "/v1/chat/completions", "/v1/responses"]
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
TEMPLATE = """\
{% for m in messages if m['content'] != 'empty' %}
{{ raise_exception('bad') if m['content'] == 'bad' }}{{ m['role'] }}: {{ m['content'] }}
{% endfor %}"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("run") / "checkpoint-7"
    save_model(folder, make_model(), TOKENIZER_JSON)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    limits = with_limits(
        max_body_mb=1, allow_host=("named.example",), allow_origin=("HTTPS://a.b/",)
    )
    with run_server(folder, limits) as running:
        yield running


def find_address(server: RunningServer) -> tuple[str, int]:
    """Where a server listens, for a bare socket."""
    return "127.0.0.1", int(server.url.rpartition(":")[2])


def encode(text: str) -> bytes:
    """A text's bytes, also those of lone surrogates, which are no UTF-8."""
    return text.encode("utf-8", "surrogatepass")


def expect_error(answer: httpx.Response, status: int | None = None, code: str = "") -> None:
    """An error of the client's, in OpenAI's form."""
    assert 400 <= answer.status_code < 500, answer.text
    error = answer.json()["error"]
    assert {*error} == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["type"]
    assert error["code"]
    assert status in (None, answer.status_code)
    assert code in ("", error["code"])


# Values of all kinds, most of them wrong wherever they are.
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([0, -1, 1, 2, 128, 300, 10**400, 1e308, -1e-308, ""])
    | st.text(st.characters(exclude_categories=[]), max_size=20)
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=8,
)
FIELDS = re.findall(
    r"\w+",
    """
    model prompt messages input suffix max_tokens max_completion_tokens max_output_tokens
    temperature top_p top_k min_p typical_p n stop seed stream stream_options logprobs
    top_logprobs echo best_of presence_penalty frequency_penalty repetition_penalty logit_bias
    no_repeat_ngram_size min_tokens bad_words return_token_ids user metadata instructions tools
    tool_choice response_format store previous_response_id text include unknown
    """,
)
VALID: dict[str, dict[str, Any]] = {
    PATHS[0]: {"prompt": "one", "max_tokens": 1},
    PATHS[1]: {"messages": [{"role": "user", "content": "one"}], "max_tokens": 1},
    PATHS[2]: {"input": "one", "max_output_tokens": 1},
}


FUZZING = settings(
    max_examples=400,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def send(server: RunningServer, path: str, body: bytes) -> str:
    """The code of the error that a body gets, or "" if it happens to be right."""
    answer = server.client.post(path, content=body, headers={"Content-Type": "application/json"})
    if answer.status_code == 200:
        return ""
    expect_error(answer)
    return str(answer.json()["error"]["code"])


def test_fields_of_any_kind_are_answered_or_refused(server: RunningServer) -> None:
    codes = set[str]()

    @FUZZING
    @given(
        st.sampled_from(PATHS),
        st.dictionaries(st.sampled_from(FIELDS), VALUES, min_size=1, max_size=3),
    )
    def try_fields(path: str, wrong: dict[str, Any]) -> None:
        codes.add(send(server, path, json.dumps({**VALID[path], **wrong}).encode()))

    try_fields()
    assert codes >= {"", "invalid_value", "unknown_parameter", "unsupported_value"}


@settings(FUZZING, max_examples=300)
@given(path=st.sampled_from(PATHS), body=st.binary(max_size=60) | st.text(max_size=60).map(encode))
def test_bytes_of_any_kind_are_refused(server: RunningServer, path: str, body: bytes) -> None:
    assert send(server, path, body) != ""


def test_bodies_with_wrong_bytes_are_answered_or_refused(server: RunningServer) -> None:
    chance = random.Random(0)
    codes = Counter[str]()
    for number in range(300):
        path = PATHS[number % 3]
        body = bytearray(json.dumps(VALID[path] | {"temperature": 0.5, "stop": ["é"]}), "utf-8")
        for _ in range(chance.randint(1, 3)):
            place = chance.randrange(len(body))
            body[place : place + chance.randint(0, 2)] = chance.randbytes(chance.randint(0, 2))
        codes[send(server, path, bytes(body))] += 1
    assert codes["invalid_json"] > 50
    assert len(codes) > 3


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (b"", "invalid_json", "Expecting value"),
        (b"[1]", "invalid_json", "it is [1]; expected an object"),
        (b'{"prompt": "caf\xe9"}', "invalid_json", "byte 15 is not UTF-8"),
        (b'{"prompt": NaN}', "invalid_json", "NaN is not a number of JSON's"),
        (b'{"prompt": ' + b"[" * 100_000, "invalid_json", "it is nested too deeply"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "invalid_json", "4300 digits"),
        (b'{"prompt": "\\ud800"}', "invalid_value", "a lone surrogate is none"),
        (b'{"prompt": [1, 300]}', "invalid_value", "prompt is 300; expected a whole number from 0"),
        (b'{"prompt": [1, true]}', "invalid_value", "prompt is True; expected a whole number"),
        (b'{"prompt": []}', "invalid_value", "not empty"),
        (b'{"prompt": [[]]}', "invalid_value", "expected token ids"),
        (b"{}", "invalid_value", "prompt is None; expected a string"),
        (b'{"prompt": "a", "temperature": 1e999}', "invalid_value", "temperature is inf"),
        (
            b'{"prompt": "a", "min_p": 1' + b"0" * 400 + b"}",
            "invalid_value",
            "a number from 0 to 1",
        ),
        (b'{"prompt": "a", "temperature": "0"}', "invalid_value", "temperature is '0'"),
        (b'{"prompt": "a", "temprature": 0}', "unknown_parameter", "'temprature'"),
        (b'{"prompt": "a", "stream_options": {"x": 1}}', "unknown_parameter", "stream_options.'x'"),
        (b'{"prompt": "a", "stop": "' + b"s" * 1001 + b'"}', "invalid_value", "at most 1,000"),
        (b'{"prompt": "a", "suffix": "b"}', "unsupported_value", "suffix is 'b'"),
        (b'{"prompt": "a", "best_of": 2}', "unsupported_value", "best_of is 2"),
        (b'{"prompt": "a", "max_tokens": 0}', "invalid_value", "only with echo"),
        (b'{"prompt": "a", "max_tokens": 128}', "context_length_exceeded", "context is 128 tokens"),
        (b'{"prompt": "a", "n": 13}', "invalid_value", "at most 12 at a time"),
        (b'{"prompt": "a", "logit_bias": {"300": 1}}', "invalid_value", "ids from 0 to 299"),
        (b'{"prompt": "a", "model": "gpt-5"}', "model_not_found", "this server has checkpoint-7"),
    ],
)
def test_an_error_says_what_was_found_and_expected(
    server: RunningServer, body: bytes, code: str, message: str
) -> None:
    headers = {"Content-Type": "application/json"}
    answer = server.client.post("/v1/completions", content=body, headers=headers)
    expect_error(answer, code=code)
    assert message in answer.json()["error"]["message"]


LONG = "word " * 200


@pytest.mark.parametrize(
    ("path", "sent", "param", "words"),
    [
        (0, {"prompt": LONG}, "prompt", "shorten the prompt"),
        (1, {"messages": [{"role": "user", "content": LONG}]}, "messages", "shorten the prompt"),
        (2, {"input": LONG}, "input", "shorten the prompt"),
        (0, {"max_tokens": 128}, "max_tokens", "max_tokens asks for 128 more"),
        (1, {"max_completion_tokens": 128}, "max_completion_tokens", "max_completion_tokens asks"),
        (2, {"max_output_tokens": 128}, "max_output_tokens", "max_output_tokens asks for"),
        (0, {"prompt": [1] * 120, "max_tokens": None}, "prompt", "max_tokens asks, if it is not"),
        (0, {"min_tokens": 9}, "min_tokens", "min_tokens is 9, but max_tokens is 1"),
        (1, {"min_tokens": 9}, "min_tokens", "min_tokens is 9, but max_tokens is 1"),
        (2, {"min_tokens": 9}, "min_tokens", "min_tokens is 9, but max_output_tokens is 1"),
        (1, {"min_tokens": 129, "max_tokens": None}, "min_tokens", "a whole number from 0 to 128"),
        (0, {"stop": ["a", ""]}, "stop", "a stop string is empty"),
        (0, {"bad_words": ""}, "bad_words", "bad_words holds a word that is empty"),
        (0, {"top_p": 0}, "top_p", "top_p is 0.0; expected a number above 0"),
        (0, {"n": 13}, "n", "13 texts"),
        (0, {"prompt": ["a"] * 13}, "prompt", "13 texts"),
        (1, {"messages": [{"role": "tool", "content": ""}]}, "messages[0].role", "role is 'tool'"),
        (2, {"input": [{"role": "user", "content": 1}]}, "input[0].content", "content is 1"),
        (1, {"messages": [{"role": "user", "content": "bad"}]}, "messages", "TemplateError: bad"),
        (2, {"input": "bad"}, "input", "TemplateError: bad"),
        (2, {"input": "empty"}, "input", "an empty prompt"),
    ],
)
def test_an_error_names_the_field_that_was_sent(
    server: RunningServer, path: int, sent: dict[str, Any], param: str, words: str
) -> None:
    answer = server.post(PATHS[path], **VALID[PATHS[path]] | sent)
    expect_error(answer)
    error = answer.json()["error"]
    assert error["param"] == param
    assert words in error["message"]


def test_what_is_not_a_request_of_the_api_is_refused(server: RunningServer) -> None:
    client = server.client
    json_type = {"Content-Type": "application/json"}
    expect_error(client.get("/v1/nothing"), 404, "not_found")
    expect_error(client.get("/v1/models/gpt-5"), 404, "model_not_found")
    expect_error(client.get("/v1/models/%00%0a%ff%f0"), 404)
    expect_error(client.get("/v1/completions"), 405, "method_not_allowed")
    expect_error(client.post("/v1/models", json={}), 405, "method_not_allowed")
    for kind in ("", "text/plain", "application/x-www-form-urlencoded"):
        answer = client.post("/v1/completions", content=b"{}", headers={"Content-Type": kind})
        expect_error(answer, 415, "unsupported_media_type")
    large = b'{"prompt": "' + b"a" * 1_000_000 + b'"}'
    expect_error(client.post("/v1/completions", content=large, headers=json_type), 413)


def test_a_body_that_does_not_end_is_refused_once_it_is_too_large(server: RunningServer) -> None:
    """It does not say how long it will be."""
    chunk = b"100000\r\n" + b"a" * 0x100000 + b"\r\n"
    with socket.create_connection(find_address(server), timeout=120) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk)
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "127.0.0.1:8000"}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "named.example:1"}, 200),
        ({"Host": "evil.example"}, 403),  # A name that was made to resolve to this machine.
        ({"Host": "localhost.evil.example"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Host": "localhost:80", "Origin": "http://localhost:81"}, 403),
        ({"Host": "localhost:80", "Origin": "http://localhost:80"}, 200),
        ({"Origin": "https://a.b"}, 200),
    ],
)
def test_pages_of_strangers_cannot_use_the_server(
    server: RunningServer, headers: dict[str, str], status: int
) -> None:
    answer = server.client.get("/v1/models", headers=headers)
    assert answer.status_code == status
    allowed = answer.headers.get("Access-Control-Allow-Origin")
    assert allowed == ("https://a.b" if headers.get("Origin") == "https://a.b" else None)


def test_a_browser_is_told_which_pages_may_use_the_server(server: RunningServer) -> None:
    for origin, allowed in (("https://a.b", "https://a.b"), ("https://evil.example", None)):
        asks = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        answer = server.client.options("/v1/completions", headers=asks)
        assert answer.headers.get("Access-Control-Allow-Origin") == allowed


def test_bytes_that_are_no_http_do_not_disturb_it(server: RunningServer) -> None:
    for sent in (b"\x00\xff" * 100, b"GET /\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\n"):
        with socket.create_connection(find_address(server)) as connection:
            connection.sendall(sent)
    assert server.client.get("/health").status_code == 200


def test_a_client_that_goes_away_unanswered_frees_its_place(
    server: RunningServer, slow: None
) -> None:
    body = b'{"prompt": "one", "max_tokens": 120, "min_tokens": 120}'
    batcher = server.served.batcher
    with socket.create_connection(find_address(server)) as connection:
        connection.sendall(HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        wait_until(lambda: batcher.num_running == 1)
        before = batcher.num_written_tokens
    wait_until(lambda: batcher.num_running == 0)
    assert batcher.num_written_tokens - before < 100


def test_bodies_that_do_not_arrive_leave_room_for_no_more(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.serve.house.MAX_READING", 1)
    with socket.create_connection(find_address(server)) as connection:
        connection.sendall(HEAD + b"Content-Length: 5\r\n\r\n{")
        wait_until(lambda: server.house.num_reading == 1)
        answer = server.post("/v1/completions", prompt="one")
        expect_error(answer, 429, "server_overloaded")
    wait_until(lambda: server.house.num_reading == 0)
    assert server.post("/v1/completions", prompt="one").status_code == 200


@pytest.fixture
def slow(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step of the model takes a while."""
    predict = server.served.generator.model.predict

    def wait(*given: Any, **named: Any) -> Any:
        time.sleep(0.02)
        return predict(*given, **named)

    monkeypatch.setattr(server.served.generator.model, "predict", wait)


@pytest.fixture
def steps(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Semaphore]:
    """The model's steps wait until they are released."""
    predict, steps = server.served.generator.model.predict, threading.Semaphore(0)

    def wait(*given: Any, **named: Any) -> Any:
        steps.acquire()
        return predict(*given, **named)

    monkeypatch.setattr(server.served.generator.model, "predict", wait)
    yield steps
    steps.release(1000)


def test_overload_is_a_429_that_says_when_to_come_back(
    server: RunningServer, steps: threading.Semaphore
) -> None:
    asked: dict[str, Any] = {"prompt": "one", "max_tokens": 100, "stream": True}
    asked["logit_bias"] = {"0": -100}  # No text ends early.
    steps.release(2)
    with server.client.stream("POST", "/v1/completions", json=asked | {"n": 12}) as stream:
        parts = stream.iter_bytes()  # Without it, the client would be gone.
        next(parts)
        answer = server.post("/v1/completions", **asked)
        expect_error(answer, 429, "server_overloaded")
        assert 1 <= int(answer.headers["Retry-After"]) <= 30
    # The client has gone, and so its places are free within a step or two.
    steps.release(1000)
    wait_until(lambda: server.served.batcher.num_running == 0)
    assert server.post("/v1/completions", prompt="one", max_tokens=1).status_code == 200

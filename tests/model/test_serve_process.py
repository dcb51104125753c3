"""The command as a process: it starts, tells where it listens, and ends as it is told to."""

import json
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from model.checkpoints.folder import save_model
from model.generate import load_generator
from model.serve.server import Server, serve
from tests.commands import velocity
from tests.servers.model_server import LIMITS, start_process
from tests.tiny import CONFIG, TOKENIZER_JSON, make_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has room for texts that take minutes."""
    folder = tmp_path_factory.mktemp("run") / "checkpoint-7"
    config = replace(CONFIG, max_position_embeddings=20_000)
    save_model(folder, make_model(config), TOKENIZER_JSON)
    return folder


def test_the_command_serves_until_a_signal_ends_it(folder: Path) -> None:
    """With a key, which nobody sees; a text that is being written at the end is cut."""
    key = "sk-key-of-the-test"
    headers = {"Authorization": f"Bearer {key}"}
    with (
        start_process(folder, "--stop-seconds", "0", api_key=key) as (process, url),
        httpx.Client(base_url=url, timeout=120) as client,
    ):
        assert client.get("/health").json()["status"] == "ok"
        for wrong in ({}, {"Authorization": "Bearer wrong"}):
            answer = client.get("/v1/models", headers=wrong)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
        assert client.get("/metrics").status_code == 401
        asked = {"prompt": "a secret prompt", "max_tokens": 5}
        asked["logit_bias"] = {"0": -100}  # No text ends early.
        answer = client.post("/v1/completions?q=query", json=asked, headers=headers)
        assert answer.status_code == 200
        counted = client.get("/metrics", headers=headers).text
        assert 'velocity_written_tokens_total{model="checkpoint-7"} 5.0' in counted
        asked |= {"max_tokens": 15_000, "stream": True, "n": 16}
        with client.stream("POST", "/v1/completions", json=asked, headers=headers) as stream:
            lines = stream.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert {part["choices"][0]["ended_by"] for part in rest} >= {None, "shutdown"}
        assert process.stderr is not None
        log = process.stderr.read()
        assert process.wait(60) == 0
    assert log.count("POST /v1/completions 200") == 2
    assert "ending; texts have 0 s left" in log
    for hidden in (key, "secret", "query", "Traceback"):
        assert hidden not in log


def test_a_client_that_connects_as_soon_as_the_line_is_there_is_not_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Before the first request can be answered: uvicorn has not begun."""

    def run(server: Server, sockets: list[socket.socket]) -> None:
        assert "listening at http://127.0.0.1:" in caplog.messages[-1]
        socket.create_connection(sockets[0].getsockname(), timeout=5).close()
        server.house.served[0].batcher.stop(0)
        server.house.close()

    monkeypatch.setattr(Server, "run", run)
    serve([folder], LIMITS, load_generator)


def test_what_keeps_it_from_starting_is_one_line(folder: Path, tmp_path: Path) -> None:
    code, _, errors = velocity("serve", "--ckpt", tmp_path, "--port", "0")
    assert (code, errors.count("\n")) == (1, 1)
    assert "found nothing" in errors
    code, _, errors = velocity("serve", "--ckpt", folder, "--host", "192.0.2.1", "--port", "0")
    assert (code, errors.count("\n")) == (1, 1)
    assert "velocity: cannot listen at 192.0.2.1, port 0:" in errors
    code, _, errors = velocity("serve", "--ckpt", folder, "--ckpt", folder, "--port", "0")
    assert "the same --ckpt is given twice" in errors


def test_without_the_extra_the_command_says_what_to_install(folder: Path) -> None:
    hidden = "import sys; sys.modules['uvicorn'] = None; import cli; cli.main()"
    process = subprocess.run(
        [sys.executable, "-c", hidden, "serve", "--ckpt", folder], capture_output=True, text=True
    )
    assert process.returncode == 1
    assert process.stderr == (
        "velocity: velocity serve needs uvicorn; install it with: pip install 'velocitylm[serve]'\n"
    )

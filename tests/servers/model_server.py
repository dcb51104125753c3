"""`velocity serve` for tests: in a thread of this process, or as the process that users start."""

import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx

from model.decode.generator import Generator
from model.generate import load_generator
from model.serve.house import House, Trace
from model.serve.metrics import Metrics
from model.serve.options import Serving
from model.serve.served import Served
from model.serve.server import Server, listen, take_in

LIMITS = Serving(port=0, max_texts=4, max_waiting=8, stop_seconds=0.5)


class RunningServer:
    """A server that listens: its URL, and what it has."""

    def __init__(self, house: House, url: str, folder: Path) -> None:
        self.house = house
        self.url = url
        self.folder = folder
        self.client = httpx.Client(base_url=url, timeout=120)

    def post(self, path: str, **fields: object) -> httpx.Response:
        """The answer to a JSON object."""
        return self.client.post(path, json=fields)

    @property
    def served(self) -> Served:
        """The only model."""
        [served] = self.house.served
        return served


@contextmanager
def run_server(folder: Path, limits: Serving = LIMITS) -> Iterator[RunningServer]:
    """Serve a folder's model from a thread."""
    with run_house([folder], limits) as running:
        yield running


def load_exact(folder: Path) -> Generator:
    """In fp64, so that a text is the same whatever is read together with it."""
    generator = load_generator(folder, "cpu")
    generator.model.double()
    return generator


@contextmanager
def run_house(
    folders: list[Path], limits: Serving = LIMITS, trace: Trace | None = None
) -> Iterator[RunningServer]:
    """Serve the models of some folders from a thread."""
    logging.getLogger("velocity").setLevel(logging.WARNING)  # No line for each request.
    served = [take_in(folder.name, folder, limits, load_exact(folder)) for folder in folders]
    house = House(served, limits, Metrics({one.id: one.batcher for one in served}), trace=trace)
    server = Server(house)
    with listen("127.0.0.1", 0) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        running = RunningServer(house, url, folders[0])
        try:
            while not server.started:
                time.sleep(0.01)
            yield running
        finally:
            running.client.close()
            server.should_exit = True
            thread.join()


@contextmanager
def start_process(
    folder: Path, *options: str, api_key: str = ""
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command's process, once it listens, and its URL."""
    environment = os.environ | ({"VELOCITY_API_KEY": api_key} if api_key else {})
    command = [sys.executable, "-m", "cli", "serve", "--ckpt", str(folder), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--device", "cpu", *options],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stderr is not None
    try:
        seen = []
        for line in process.stderr:
            seen.append(line)
            if found := re.search(r"http://\S+\d", line):
                yield process, found[0]
                break
        else:
            raise AssertionError("".join(seen))
    finally:
        process.kill()
        process.communicate()


def with_limits(**changes: object) -> Serving:
    """The limits of tests, some of them changed."""
    return replace(LIMITS, **changes)  # type: ignore[arg-type]

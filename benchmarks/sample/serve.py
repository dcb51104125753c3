"""`velocity serve` under load: many clients for a while, against one alone.

The server is a process of its own, on a checkpoint with random weights; clients stream texts one
after another, with prompts and lengths drawn anew. Every answer must be a whole one. Tokens are
those that the server counts. Its memory is sampled all along, and is told: what it has at the
end is compared with what it had once all clients were there.
"""

import argparse
import asyncio
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from benchmarks.measure import (
    OURS,
    Engine,
    Figures,
    Measured,
    make_parser,
    print_result,
    run_script,
    take_turns,
)
from benchmarks.models import add_size_options, make_model_config, write_checkpoint

PACKAGES = ("torch", "starlette", "uvicorn", "h11", "httpx")
WRITTEN = re.compile(r"^velocity_written_tokens_total\{.*\} (\S+)$", re.MULTILINE)
SAMPLE_SECONDS = 0.25


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = make_parser("velocity serve under load: many clients against one.")
    parser.set_defaults(rounds=1)
    add_size_options(parser)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60, help="of load, many clients and one")
    parser.add_argument("--prompt-tokens", type=int, default=128, help="at most")
    parser.add_argument("--new-tokens", type=int, default=64, help="at most")
    parser.add_argument(
        "--max-texts", type=int, default=16, help="that the server writes at a time"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0, help="of weights and requests")
    return parser.parse_args()


def main() -> None:
    """Measure many clients and one in turn, and print the line."""
    options = parse_arguments()
    config = make_model_config(options)
    with tempfile.TemporaryDirectory(prefix="benchmark-serve-") as name:
        folder = write_checkpoint(Path(name) / "checkpoint-0", config, options.seed)
        with start_server(folder, options) as (process, url):
            growth: list[float] = []

            def start(num_clients: int) -> Callable[[], Callable[[], Measured]]:
                return lambda: lambda: measure(process, url, num_clients, options, growth)

            engines = [
                Engine(OURS, (), start(options.clients)),
                Engine("one_client", (), start(1)),
            ]
            results = take_turns(engines, options, lambda outputs: None)
    # Too short a time, or another system than Linux, tells nothing of it.
    checks = {"max_memory_growth_share": max(growth)} if growth else {}
    work = {"parameters": config.num_parameters()}
    print_result("sample.serve", options, work, results, checks, PACKAGES)


@contextmanager
def start_server(
    folder: Path, options: argparse.Namespace
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The server's process and URL; its log goes to a file."""
    command = [sys.executable, "-m", "cli", "serve", "--ckpt", str(folder), "--port", "0"]
    limits = ["--max-texts", str(options.max_texts), "--device", options.device]
    log = folder.parent / "log"
    with log.open("w") as file:
        process = subprocess.Popen([*command, *limits], stderr=file, text=True)
    try:
        while not (found := re.search(r"listening at (\S+);", log.read_text())):
            if process.poll() is not None:
                raise RuntimeError(log.read_text())
            time.sleep(0.1)
        yield process, found[1]
    finally:
        process.terminate()
        if process.wait(30) != 0:
            raise RuntimeError(f"the server ended with {process.returncode}")


@dataclass
class Load:
    """What clients saw, and the server's memory in bytes, sample by sample."""

    first_seconds: list[float] = field(default_factory=list)
    num_texts: int = 0
    memory: list[int] = field(default_factory=list)


def measure(
    process: subprocess.Popen[str],
    url: str,
    num_clients: int,
    options: argparse.Namespace,
    growth: list[float],
) -> Measured:
    """The figures of so many clients; how much memory grew is added to `growth`."""
    load = Load()
    tokens, seconds = asyncio.run(run_clients(process.pid, url, num_clients, options, load))
    half = load.memory[len(load.memory) // 2 :]
    early = load.memory[len(load.memory) // 4 : len(load.memory) // 2]
    if early:
        growth.append(statistics.median(half) / statistics.median(early) - 1)
    figures: Figures = {
        "tokens_per_second": tokens / seconds,
        "texts_per_second": load.num_texts / seconds,
        "first_token_seconds": statistics.median(load.first_seconds),
        "peak_memory_bytes": float(max(load.memory, default=1)),
    }
    return Measured(figures)


async def run_clients(
    pid: int, url: str, num_clients: int, options: argparse.Namespace, load: Load
) -> tuple[float, float]:
    """Let clients ask until the time is up; the tokens written meanwhile, and the seconds."""
    limits = httpx.Limits(max_connections=num_clients + 1)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        written, begun = await count_written(client), time.monotonic()
        end = begun + options.seconds
        clients = [
            asyncio.create_task(
                ask(client, random.Random(f"{options.seed} {n}"), end, options, load)
            )
            for n in range(num_clients)
        ]
        while time.monotonic() < end and not any(task.done() for task in clients):
            load.memory += read_memory(pid)
            await asyncio.sleep(SAMPLE_SECONDS)
        tokens = await count_written(client) - written
        seconds = time.monotonic() - begun
        await asyncio.gather(*clients)  # The last texts are whole, too.
        return tokens, seconds


async def ask(
    client: httpx.AsyncClient,
    chance: random.Random,
    end: float,
    options: argparse.Namespace,
    load: Load,
) -> None:
    """Ask for one text after another until the time is up; each must be whole."""
    while time.monotonic() < end:
        num_prompt = chance.randint(1, options.prompt_tokens)
        num_new = chance.randint(1, options.new_tokens)
        asked = {
            "prompt": [chance.randrange(50_000) for _ in range(num_prompt)],
            "max_tokens": num_new,
            "stream": True,
        }
        begun = time.monotonic()
        lines = []
        async with client.stream("POST", "/v1/completions", json=asked) as answer:
            if answer.status_code != 200:
                raise RuntimeError(f"{answer.status_code}: {(await answer.aread()).decode()}")
            async for line in answer.aiter_lines():
                if not lines:
                    load.first_seconds.append(time.monotonic() - begun)
                if line:
                    lines.append(line.removeprefix("data: "))
        if lines[-1] != "[DONE]" or not json.loads(lines[-2])["choices"][0]["finish_reason"]:
            raise RuntimeError(f"a text is not whole: {lines[-2:]}")
        load.num_texts += 1


async def count_written(client: httpx.AsyncClient) -> float:
    """Tokens that the server has written so far."""
    [count] = WRITTEN.findall((await client.get("/metrics")).text)
    return float(count)


def read_memory(pid: int) -> list[int]:
    """Bytes of a process that are in memory, where Linux tells them."""
    status = Path(f"/proc/{pid}/status")
    found = re.search(r"VmRSS:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return [int(found[1]) * 1024] if found else []


if __name__ == "__main__":
    run_script(main)

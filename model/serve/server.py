"""`velocity serve`: loads the models, listens, and ends when it is told to."""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

import uvicorn

from model.chat.template import find_template
from model.checkpoints.seal import find_checkpoint
from model.decode.generator import Generator
from model.serve.app import make_app
from model.serve.batcher import Batcher
from model.serve.connections import Connection
from model.serve.house import House, Trace
from model.serve.metrics import Metrics
from model.serve.options import Serving
from model.serve.served import Served

logger = logging.getLogger("velocity")

# Beside the seconds that texts have: for clients to read what was written last.
CLOSE_SECONDS = 5


def serve(
    checkpoints: Sequence[Path],
    limits: Serving,
    load: Callable[[Path], Generator],
    trace: Trace | None = None,
) -> None:
    """Serve the models of these checkpoints, which `load` loads, until a signal ends it.

    `trace` says where a text comes from, if the training data is at hand.

    Raises what `load` raises, and ValueError if the address cannot be had.
    """
    logger.setLevel(logging.INFO)
    with listen(limits.host, limits.port) as listener:  # At once: loading may take minutes.
        folders = [find_checkpoint(path) for path in checkpoints]
        served = [
            take_in(name, folder, limits, load(folder))
            for name, folder in zip(name_models(folders), folders, strict=True)
        ]
        house = House(served, limits, Metrics({one.id: one.batcher for one in served}), trace=trace)
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        listener.listen()  # Whoever connects as soon as the line is there is not refused.
        logger.info("velocity: listening at http://%s:%d; Ctrl-C ends it", shown, port)
        Server(house).run(sockets=[listener])


def take_in(name: str, folder: Path, limits: Serving, generator: Generator) -> Served:
    """A model with its thread, and a line about the memory that its texts take."""
    batcher = Batcher(generator, limits.max_texts, limits.max_waiting)
    logger.info(
        "velocity: %s: %d texts of up to %s tokens at a time, whose keys and values take at most "
        "%.1f MB",
        name,
        limits.max_texts,
        f"{generator.context:,}",
        batcher.num_bytes / 1e6,
    )
    created = int(folder.stat().st_mtime)
    return Served(name, generator, batcher, created, find_template(generator.words or folder))


def name_models(folders: Sequence[Path]) -> list[str]:
    """What requests call the models: the folders' names, with more of the path where equal.

    >>> name_models([Path("runs/a/checkpoint-9"), Path("runs/b/checkpoint-9"), Path("best")])
    ['a/checkpoint-9', 'b/checkpoint-9', 'best']
    """
    parts = [folder.absolute().parts[1:] for folder in folders]
    names: list[str] = []
    for own in parts:
        length = next(
            n
            for n in range(1, len(own) + 1)
            if sum(other[-n:] == own[-n:] for other in parts) == 1 or n == len(own)
        )
        names.append("/".join(own[-length:]))
    if len({*names}) < len(names):
        raise ValueError("the same --ckpt is given twice; give each folder once")
    return names


def listen(host: str, port: int) -> socket.socket:
    """A socket at this address; ValueError, naming it, if there can be none."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise ValueError(
            f"cannot listen at {host}, port {port}: {error.strerror}; choose another --port or "
            "--host"
        ) from None
    return listener


class Server(uvicorn.Server):
    """uvicorn, whose end is also that of the texts; a signal ends it with exit code 0."""

    def __init__(self, house: House) -> None:
        self.house = house
        logging.getLogger("uvicorn").handlers = logger.handlers
        seconds = house.limits.stop_seconds + CLOSE_SECONDS
        super().__init__(
            uvicorn.Config(
                make_app(house),
                http=Connection,
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=round(seconds),
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; at the second Ctrl-C, cut the texts."""
        if self.should_exit and sig == signal.SIGINT:
            for served in self.house.served:
                served.batcher.cut()
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let texts end, or cut them, and close every connection."""
        logger.info("velocity: ending; texts have %g s left", self.house.limits.stop_seconds)
        stops = [
            asyncio.to_thread(served.batcher.stop, self.house.limits.stop_seconds)
            for served in self.house.served
        ]
        await asyncio.gather(super().shutdown(sockets), *stops)
        self.house.close()

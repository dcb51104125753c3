"""What the server has: its models, its limits, and the threads that read requests."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from starlette.requests import Request

from model.serve.body import read_body
from model.serve.metrics import Metrics
from model.serve.options import Serving
from model.serve.served import Served
from model.serve.wire.errors import ApiError, overloaded
from model.serve.wire.fields import Fields, Object, read_object, show

T = TypeVar("T")
# A text, and the characters [start, stop) of it that are looked for -> where the training data has
# passages of them. Raises TextRefused, for the client, or ValueError, for the log, if the data
# cannot be read.
Trace = Callable[[str, int, int], Object]

# Reading a request takes a core: parsing, and above all encoding its prompts.
NUM_READERS = 2
# Each holds a body, of which no more is known yet than that it is not too large.
MAX_READING = 64


class TextRefused(ValueError):
    """A text that cannot be looked for, and why."""


@dataclass
class House:
    """What requests share."""

    served: Sequence[Served]
    limits: Serving
    metrics: Metrics
    readers: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(NUM_READERS, "reader")
    )
    num_reading: int = 0
    # What answers where a text comes from; None if the server was given no training data.
    trace: Trace | None = None
    # Answers one after another.
    tracer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "tracer"))

    def find(self, fields: Fields) -> Served:
        """The model that a request names; the first one if it names none."""
        name = fields.text("model")
        return self.served[0] if name is None else self.find_model(name)

    def find_model(self, name: str) -> Served:
        """The model with this id; a 404 if there is none."""
        for served in self.served:
            if served.id == name:
                return served
        ids = ", ".join(served.id for served in self.served)
        raise ApiError(
            404,
            f"there is no model {show(name)}; this server has {ids}",
            "model_not_found",
            "model",
        )

    async def read(self, request: Request, read: Callable[[Fields], T]) -> T:
        """A request's fields as `read` takes them, without keeping the event loop from others."""
        if self.num_reading >= MAX_READING:
            raise overloaded("too many requests are being read", 1)
        self.num_reading += 1
        try:
            body = await read_body(request, self.limits.max_body_mb * 1_000_000)
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self.readers, lambda: read(Fields(read_object(body))))
        finally:
            self.num_reading -= 1

    def close(self) -> None:
        """End what was started for reading requests."""
        self.readers.shutdown()
        self.tracer.shutdown(cancel_futures=True)
        for served in self.served:
            if served.template is not None:
                served.template.close()

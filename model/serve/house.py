"""What the server has: its models, each with the thread that writes for it, and its limits."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from tokenizers import Tokenizer

from model.decode.draft import Draft
from model.decode.generator import Generator
from model.serve.batcher import (
    Batcher,
    Job,
    ModelFailure,
    Overloaded,
    Stopping,
    Update,
)
from model.serve.chat.template import ChatTemplate
from model.serve.metrics import Metrics
from model.serve.options import Serving
from model.serve.spelling import Speller
from model.serve.wire.errors import ApiError, refuse
from model.serve.wire.fields import Fields, Object, read_object, show

T = TypeVar("T")
# A text, and the characters [start, stop) of it that are looked for -> where the training data has
# passages of them. Raises ValueError, for the log, if the data cannot be read.
Trace = Callable[[str, int, int], Object]

# Reading a request takes a core: parsing, and above all encoding its prompts.
NUM_READERS = 2
# Each holds a body, of which no more is known yet than that it is not too large.
MAX_READING = 64
BODY_SECONDS = 60


@dataclass
class Served:
    """A model that requests may name."""

    id: str
    generator: Generator
    batcher: Batcher
    created: int  # Seconds since 1970.
    template: ChatTemplate | None = None

    def __post_init__(self) -> None:
        self.speller = Speller(self.generator.tokenizer)

    @cached_property
    def chat_tokenizer(self) -> Tokenizer:
        """The tokenizer for templates: what spells a special token there means it."""
        tokenizer = Tokenizer.from_str(self.generator.tokenizer.to_str())
        tokenizer.encode_special_tokens = False
        return tokenizer

    def expect_template(self) -> ChatTemplate:
        """The chat template; a 400 if there is none."""
        if self.template is None:
            raise refuse(
                f"{self.id} has no chat template, so it was not trained on chats; ask "
                "/v1/completions instead",
                "model",
                "no_chat_template",
            )
        return self.template

    def describe(self) -> Object:
        """The model as /v1/models lists it."""
        return {
            "id": self.id,
            "object": "model",
            "created": self.created,
            "owned_by": "velocity",
            "max_model_len": self.generator.context,
            "chat": self.template is not None,
        }


class Writing:
    """A request's texts while they are written; iterating gives what is added to them.

    Raises ApiError when made, if there is no room, and from the iteration if the texts cannot end.
    """

    def __init__(
        self,
        batcher: Batcher,
        drafts: Sequence[Draft],
        scores_prompts: bool,
        seconds: float,
        metrics: Metrics,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._news = asyncio.Queue[list[Update] | Exception]()
        self._batcher = batcher
        self._metrics = metrics
        self._started = time.monotonic()

        def send(news: list[Update] | Exception) -> None:
            loop.call_soon_threadsafe(self._news.put_nowait, news)

        self._job = Job(drafts, send, self._started + seconds, scores_prompts)
        try:
            batcher.submit(self._job)
        except (Overloaded, Stopping) as error:
            raise explain(error) from None

    async def __aiter__(self) -> AsyncIterator[Update]:
        num_left = len(self._job.drafts)
        is_first = True
        while num_left:
            news = await self._news.get()
            if isinstance(news, Exception):
                raise explain(news) from news
            if is_first:
                is_first = False
                self._metrics.first_token.observe(time.monotonic() - self._started)
            for update in news:
                num_left -= update.ended_by is not None
                yield update

    def close(self) -> None:
        """Give up whatever has not been written."""
        self._batcher.cancel(self._job)


def explain(error: Exception) -> ApiError:
    """What a client is told of an error of the batcher's."""
    if isinstance(error, Overloaded):
        return ApiError(
            429,
            f"the server has no room for more texts; ask again in {error.seconds} s",
            "server_overloaded",
            headers={"Retry-After": str(error.seconds)},
        )
    if isinstance(error, Stopping):
        return ApiError(
            503, "the server is shutting down", "shutting_down", headers={"Retry-After": "10"}
        )
    assert isinstance(error, ModelFailure), error
    return ApiError(500, f"the model could not write: {error}", "model_failure")


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
            raise explain(Overloaded(1))
        self.num_reading += 1
        try:
            body = await self.read_body(request)
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self.readers, lambda: read(Fields(read_object(body))))
        finally:
            self.num_reading -= 1

    async def read_body(self, request: Request) -> bytes:
        """A request's body; 413 as soon as it is known to be too large."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(
                415,
                f"the content type is {show(kind)}; expected application/json",
                "unsupported_media_type",
            )
        most = self.limits.max_body_mb * 1_000_000
        told = request.headers.get("content-length", "0")
        chunks, size = list[bytes](), 0
        if told.isdecimal() and int(told) > most:
            raise _refuse_size(most)
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > most:
                        break
                    chunks.append(chunk)
        except TimeoutError:
            raise ApiError(
                408, f"the body did not arrive within {BODY_SECONDS} s", "request_timeout"
            ) from None
        if size > most:
            raise _refuse_size(most)
        return b"".join(chunks)

    def close(self) -> None:
        """End what was started for reading requests."""
        self.readers.shutdown()
        self.tracer.shutdown(cancel_futures=True)
        for served in self.served:
            if served.template is not None:
                served.template.close()

    def write(
        self, served: Served, drafts: Sequence[Draft], scores_prompts: bool = False
    ) -> Writing:
        """Let drafts be written."""
        seconds = self.limits.max_seconds
        return Writing(served.batcher, drafts, scores_prompts, seconds, self.metrics)


def _refuse_size(most: int) -> ApiError:
    return ApiError(
        413,
        f"the body has more than {most:,} bytes, the most that this server takes",
        "request_too_large",
        headers={"Connection": "close"},
    )


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives; it is cancelled if the client goes away meanwhile."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_wait_until_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _wait_until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass

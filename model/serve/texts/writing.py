"""A request's texts while the batcher writes them, and what a client is told where it cannot."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

from model.decode.draft import Draft
from model.serve.batcher import Batcher, Job, ModelFailure, Overloaded, Stopping, Update
from model.serve.metrics import Metrics
from model.serve.wire.errors import ApiError, overloaded


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
        return overloaded("the server has no room for more texts", error.seconds)
    if isinstance(error, Stopping):
        told, headers = "the server is shutting down", {"Retry-After": "10"}
        return ApiError(503, told, "shutting_down", headers=headers)
    assert isinstance(error, ModelFailure), error
    return ApiError(500, f"the model could not write: {error}", "model_failure")

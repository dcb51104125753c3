"""An answer that is a stream of events, and what ends with it."""

from collections.abc import AsyncIterator, Callable

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from model.serve.wire.answers import HEADERS


class EventStream(StreamingResponse):
    """Server-sent events; `close` is called at the end, whether or not the client stayed."""

    def __init__(self, events: AsyncIterator[bytes], close: Callable[[], None]) -> None:
        # A proxy that gathers an answer would hold the events back.
        headers = {**HEADERS, "X-Accel-Buffering": "no"}
        super().__init__(events, headers=headers, media_type="text/event-stream")
        self.close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until they end or the client goes away."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.close()

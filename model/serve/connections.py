"""A connection of a client: how long it may be idle, and how many there may be.

uvicorn bounds neither where a client sends nothing, or a request's head byte by byte, or reads
nothing of an answer: some hundreds of such connections, which cost a client nothing, would leave no
room for others.
"""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 512
# For a request's head to arrive, from when the connection was made or the last answer ended.
HEAD_SECONDS = 30
# For a client to read something of an answer that waits for it.
READ_SECONDS = 60


class Connection(H11Protocol):
    """uvicorn's, bounded."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Close it if there are too many."""
        super().connection_made(transport)
        self._await_head()
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        super().connection_lost(exc)
        self._timer.cancel()

    def on_response_complete(self) -> None:
        """Wait for the next request, if there may be one; it may have arrived already."""
        super().on_response_complete()
        self._timer.cancel()
        self._await_head()

    def pause_writing(self) -> None:
        """Wait for the client to read: what is sent is more than its system and ours take."""
        super().pause_writing()
        self._reading = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """It has read."""
        super().resume_writing()
        self._reading.cancel()

    def _await_head(self) -> None:
        self._timer = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _give_up(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()

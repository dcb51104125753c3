"""/v1/trace: which documents of the training data hold a text, and which steps saw them there."""

import asyncio
import logging

from starlette.requests import Request
from starlette.responses import Response

from model.serve.house import House, TextRefused
from model.serve.wire.answers import make_json
from model.serve.wire.errors import ApiError, overloaded, refuse
from model.serve.wire.fields import Fields

logger = logging.getLogger("velocity")

# At most a token for each of them, of nearly every tokenizer; it bounds the time of an answer.
MAX_TEXT_BYTES = 8000
# Answered one after another: each reads the set's files for up to seconds.
MAX_WAITING = 8


class Traces:
    """The endpoint."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.num_waiting = 0

    async def answer(self, request: Request) -> Response:
        """The passages of a text, as `velocity shards find --json` has them."""
        asked = await self.house.read(request, self.read)
        if self.num_waiting >= MAX_WAITING:
            raise overloaded(f"{MAX_WAITING} texts are being looked for already", 5)
        self.num_waiting += 1
        try:
            loop = asyncio.get_running_loop()
            assert self.house.trace is not None  # Or there is no such path.
            answer = await loop.run_in_executor(self.house.tracer, self.house.trace, *asked)
        except TextRefused as error:  # Its bytes are bounded, its tokens are not known before.
            raise refuse(str(error), "text") from None
        except ValueError as error:  # A file of the set or its index.
            logger.error("velocity: %s", error)
            raise ApiError(
                500, "the training data cannot be read; the server's log says why", "set_unreadable"
            ) from None
        finally:
            self.num_waiting -= 1
        return make_json(answer)

    def read(self, fields: Fields) -> tuple[str, int, int]:
        """The text, and which characters of it are looked for: by default all."""
        text = fields.text("text")
        start, stop = (fields.whole(name, 0, MAX_TEXT_BYTES) for name in ("start", "stop"))
        fields.refuse_others()
        if not text:
            raise refuse("text is missing or empty; expected the text to look for", "text")
        size = len(text.encode())
        if size > MAX_TEXT_BYTES:
            raise refuse(
                f"the text has {size:,} bytes; expected at most {MAX_TEXT_BYTES:,}: choose a part "
                "of it",
                "text",
            )
        start = start or 0
        stop = len(text) if stop is None else stop
        if not start < stop <= len(text):
            raise refuse(
                f"start is {start:,} and stop is {stop:,}; expected characters of the text, which "
                f"has {len(text):,}",
                "start",
            )
        return text, start, stop

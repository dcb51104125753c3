"""A path of the API that writes texts: what is asked for is read, written, and answered."""

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response

from model.serve.house import House
from model.serve.served import Served
from model.serve.texts.choices import Asked, collect
from model.serve.texts.streams import EventStream, unless_gone
from model.serve.texts.writing import Writing
from model.serve.wire.answers import make_json
from model.serve.wire.fields import Fields


class Endpoint:
    """The endpoint whose requests `read` checks, for the model that they name."""

    def __init__(self, house: House, read: Callable[[Served, Fields], Asked]) -> None:
        self.house = house
        self._read = read

    def read(self, fields: Fields) -> Asked:
        """What a request asks for."""
        return self._read(self.house.find(fields), fields)

    async def answer(self, request: Request) -> Response:
        """Answer a request, whole or as a stream."""
        asked = await self.house.read(request, self.read)
        writing = Writing(
            asked.served.batcher,
            asked.drafts,
            asked.measures_prompts,
            self.house.limits.max_seconds,
            self.house.metrics,
        )
        if asked.form.stream:
            return EventStream(asked.stream(writing), writing.close)
        try:
            choices = await unless_gone(request, collect(asked, writing))
        finally:
            writing.close()
        return make_json(asked.answer(choices))

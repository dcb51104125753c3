"""/v1/completions: texts that continue prompts."""

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from model.decode.draft import Draft
from model.serve.batcher import EndReason, Update
from model.serve.drafts import Prompt, count_texts, decode, encode, make_drafts
from model.serve.house import House, Served, Writing, unless_gone
from model.serve.sampling import read_settings
from model.serve.streams import EventStream
from model.serve.wire.answers import END_OF_STREAM, make_event, make_json
from model.serve.wire.errors import ApiError, refuse
from model.serve.wire.fields import Fields, Object

DEFAULT_MAX_TOKENS = 16
FINISH_REASONS: dict[EndReason, str] = {
    "stop": "stop",
    "end_of_text": "stop",
    "length": "length",
    "context": "length",
    "time": "length",
    "shutdown": "length",
}


@dataclass
class Asked:
    """A request for completions, and how its answer begins."""

    served: Served
    prompts: Sequence[Prompt]
    drafts: Sequence[Draft]
    echo: bool
    stream: bool
    include_usage: bool
    returns_ids: bool
    id: str = field(default_factory=lambda: f"cmpl-{secrets.token_hex(16)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def prompt_of(self, index: int) -> Prompt:
        """The prompt of a text; all of the first prompt's texts come first."""
        return self.prompts[index * len(self.prompts) // len(self.drafts)]

    def wrap(self, choices: list[Object]) -> Object:
        """An answer, or a part of a streamed one, with these choices."""
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.served.id,
            "choices": choices,
        }

    def count(self, num_written: int) -> Object:
        """The usage: equal prompts of one request count once for each time they are named."""
        num_prompt = sum(len(prompt.tokens) for prompt in self.prompts)
        return {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_written,
            "total_tokens": num_prompt + num_written,
        }


@dataclass
class Choice:
    """One text, or what is new of it."""

    asked: Asked
    index: int
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    has_prompt: bool = False
    ended_by: EndReason | None = None

    def __post_init__(self) -> None:
        if self.has_prompt:
            self.text = self.asked.prompt_of(self.index).text

    def add(self, update: Update) -> None:
        """Add what was written."""
        self.text += update.piece
        self.tokens += update.tokens
        self.ended_by = update.ended_by

    def show(self) -> Object:
        """The choice as it is answered."""
        shown: Object = {
            "index": self.index,
            "text": self.text,
            "logprobs": None,
            "finish_reason": self.ended_by and FINISH_REASONS[self.ended_by],
            "ended_by": self.ended_by,
        }
        if self.asked.returns_ids:
            prompt = self.asked.prompt_of(self.index)
            shown["prompt_token_ids"] = [*prompt.tokens]
            shown["token_ids"] = self.tokens
        return shown


class Completions:
    """The endpoint."""

    def __init__(self, house: House) -> None:
        self.house = house

    async def answer(self, request: Request) -> Response:
        """Answer a request, whole or as a stream."""
        asked = await self.house.read(request, self.read)
        writing = self.house.write(asked.served, asked.drafts)
        if asked.stream:
            return EventStream(stream(asked, writing), writing.close)
        try:
            return make_json(await unless_gone(request, collect(asked, writing)))
        finally:
            writing.close()

    def read(self, fields: Fields) -> Asked:
        """A request, checked, with its drafts."""
        served = self.house.find(fields)
        settings = read_settings(fields)
        echo, stream = fields.flag("echo"), fields.flag("stream")
        include_usage = read_stream_options(fields)
        returns_ids = fields.flag("return_token_ids")
        max_tokens = fields.whole("max_tokens", 0, 2**31)
        if max_tokens == 0 and not echo:
            raise refuse("max_tokens is 0, which only echo gives a meaning", "max_tokens")
        fields.expect(
            "best_of", [settings.num_return_sequences], "the best are not chosen; expected n"
        )
        fields.expect("suffix", [], "text cannot be written before a suffix")
        rows = list_prompts(fields)
        fields.refuse_others()
        count_texts(len(rows), settings.num_return_sequences, served.batcher.room)
        prompts = [read_prompt(fields, row, served) for row in rows]
        num_new = DEFAULT_MAX_TOKENS if max_tokens is None else max_tokens
        drafts = make_drafts(served.generator, prompts, settings, num_new, "max_tokens")
        return Asked(served, prompts, drafts, echo, stream, include_usage, returns_ids)


def read_stream_options(fields: Fields) -> bool:
    """Whether a stream ends with the usage."""
    options = fields.nested("stream_options")
    include_usage = options.flag("include_usage")
    options.refuse_others()
    return include_usage


def list_prompts(fields: Fields) -> list[Any]:
    """The prompts, unchecked: a text, several, the ids of one, or of several."""
    value = fields.get("prompt")
    if isinstance(value, str) or (isinstance(value, list) and value and type(value[0]) is int):
        return [value]
    if not isinstance(value, list) or not value:
        raise fields.wrong("prompt", value, "a string, token ids, or a list of either, not empty")
    return value


def read_prompt(fields: Fields, value: Any, served: Served) -> Prompt:
    """One prompt: a text, or token ids."""
    generator = served.generator
    if not isinstance(value, list):
        return encode(generator, fields.check_text(value, "prompt"))
    last = generator.num_words - 1
    if not value:
        raise fields.wrong("prompt", value, "token ids; an empty text is the string \"\"")
    return decode(generator, [fields.check_whole(id, "prompt", 0, last) for id in value])


async def collect(asked: Asked, writing: Writing) -> Object:
    """The whole answer."""
    choices = [Choice(asked, i, has_prompt=asked.echo) for i in range(len(asked.drafts))]
    async for update in writing:
        choices[update.index].add(update)
    num_written = sum(len(choice.tokens) for choice in choices)
    answer = asked.wrap([choice.show() for choice in choices])
    return {**answer, "usage": asked.count(num_written)}


async def stream(asked: Asked, writing: Writing) -> AsyncIterator[bytes]:
    """The answer's events, each with what is new of one text."""
    begun = set[int]()
    num_written = 0
    extra: Object = {"usage": None} if asked.include_usage else {}
    try:
        async for update in writing:
            new = Choice(asked, update.index, has_prompt=asked.echo and update.index not in begun)
            begun.add(update.index)
            new.add(update)
            num_written += len(new.tokens)
            if new.text or new.ended_by or asked.returns_ids:
                yield make_event({**asked.wrap([new.show()]), **extra})
        if asked.include_usage:
            yield make_event({**asked.wrap([]), "usage": asked.count(num_written)})
        yield END_OF_STREAM
    except ApiError as error:  # The status has long been sent.
        yield make_event(error.body())

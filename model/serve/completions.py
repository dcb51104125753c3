"""/v1/completions: texts that continue prompts."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from model.serve.choices import Asked, Choice, bound, collect, read_streaming
from model.serve.drafts import Prompt, count_texts, make_drafts
from model.serve.house import House, Served, Writing, unless_gone
from model.serve.sampling import MaxTokens, read_settings
from model.serve.spelling import count_characters, show_bytes
from model.serve.streams import EventStream
from model.serve.wire.answers import END_OF_STREAM, make_event, make_json
from model.serve.wire.errors import ApiError, refuse
from model.serve.wire.fields import Fields, Object

KIND = "text_completion"
DEFAULT_MAX_TOKENS = 16
MAX_ALTERNATIVES = 20


@dataclass
class AskedCompletions(Asked):
    """A request for completions."""

    echo: bool = False
    # The texts of the prompts, one for each draft.
    prompts: list[str] = field(default_factory=list)
    # Of each text whose answer has begun, how many characters its tokens had so far.
    offsets: dict[int, int] = field(default_factory=dict)

    def show(self, choice: Choice) -> Object:
        """A choice as it is answered; with `echo`, the first part of one begins with the prompt."""
        begin = self.prompts[choice.index] if self.echo and choice.index not in self.offsets else ""
        offset = self.offsets.setdefault(choice.index, 0)
        shown: Object = {"index": choice.index, "text": begin + choice.text, "logprobs": None}
        if self.drafts[choice.index].settings.logprobs is not None:
            logprobs, self.offsets[choice.index] = show_logprobs(choice, offset)
            shown["logprobs"] = logprobs
        return shown | choice.show_end()


def show_logprobs(choice: Choice, offset: int) -> tuple[Object, int]:
    """The log-probabilities as OpenAI's completions have them, and the offset behind them.

    A place's alternatives are an object by their text, and hold the token itself, too. Of two that
    spell the same, the likelier is there.
    """
    spell = choice.asked.served.speller.spell
    tokens: list[str] = []
    own: list[float | None] = []
    best: list[dict[str, float] | None] = []
    offsets: list[int] = []
    ids: list[dict[str, int]] = []
    for scored in (*choice.prompt_logprobs, *choice.logprobs):
        spelled = spell(scored.token)
        tokens.append(show_bytes(spelled))
        offsets.append(offset)
        offset += count_characters(spelled)
        if scored.logprob is None:  # The first token of a prompt.
            own.append(None)
            best.append(None)
            ids.append({})
            continue
        own.append(bound(scored.logprob))
        places: dict[str, float] = {}
        place_ids: dict[str, int] = {}
        for token, logprob in (*scored.alternatives, (scored.token, scored.logprob)):
            shown = show_bytes(spell(token))
            if shown not in places:
                places[shown] = bound(logprob)
                place_ids[shown] = token
        best.append(places)
        ids.append(place_ids)
    shown_all: Object = {
        "tokens": tokens,
        "token_logprobs": own,
        "top_logprobs": best,
        "text_offset": offsets,
    }
    return shown_all | ({"top_token_ids": ids} if choice.asked.returns_ids else {}), offset


class Completions:
    """The endpoint."""

    def __init__(self, house: House) -> None:
        self.house = house

    async def answer(self, request: Request) -> Response:
        """Answer a request, whole or as a stream."""
        asked = await self.house.read(request, self.read)
        has_logprobs = asked.drafts[0].settings.logprobs is not None
        writing = self.house.write(asked.served, asked.drafts, asked.echo and has_logprobs)
        if asked.stream:
            return EventStream(stream(asked, writing), writing.close)
        try:
            choices = await unless_gone(request, collect(asked, writing))
        finally:
            writing.close()
        answer = asked.wrap(KIND, [asked.show(choice) for choice in choices])
        return make_json({**answer, "usage": asked.count()})

    def read(self, fields: Fields) -> AskedCompletions:
        """A request, checked, with its drafts."""
        served = self.house.find(fields)
        num_alternatives = fields.whole("logprobs", 0, MAX_ALTERNATIVES)
        most = MaxTokens.read(fields, "max_tokens", 0, DEFAULT_MAX_TOKENS)
        settings = read_settings(fields, served.generator, most, num_alternatives)
        num_samples = settings.num_return_sequences
        echo = fields.flag("echo")
        stream, include_usage = read_streaming(fields)
        returns_ids = fields.flag("return_token_ids")
        if most.value == 0 and not echo:
            raise refuse("max_tokens is 0, which means something only with echo", "max_tokens")
        fields.expect("best_of", [num_samples], "the best are not chosen; expected n")
        fields.expect("suffix", [], "text is only written at the end")
        rows = list_prompts(fields)
        fields.refuse_others()
        count_texts(len(rows), num_samples, served.batcher.room, "prompt")
        prompts = [read_prompt(fields, row, served) for row in rows]
        drafts = make_drafts(served.generator, prompts, settings, most, "prompt")
        return AskedCompletions(
            served,
            drafts,
            num_samples,
            stream,
            include_usage,
            returns_ids,
            "cmpl-",
            echo=echo,
            prompts=[draft.text for draft in drafts],
        )


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
    if not isinstance(value, list):
        return fields.check_text(value, "prompt")
    if not value:
        raise fields.wrong("prompt", value, 'token ids; an empty text is the string ""')
    last = served.generator.num_words - 1
    return [fields.check_whole(id, "prompt", 0, last) for id in value]


async def stream(asked: AskedCompletions, writing: Writing) -> AsyncIterator[bytes]:
    """The answer's events, each with what is new of one text."""
    extra: Object = {"usage": None} if asked.include_usage else {}
    try:
        async for update in writing:
            choice = Choice(asked, update.index)
            choice.add(update)
            shown = asked.show(choice)
            if shown["text"] or choice.ended_by or shown["logprobs"] or asked.returns_ids:
                yield make_event(asked.wrap(KIND, [shown]) | extra)
        if asked.include_usage:
            yield make_event(asked.wrap(KIND, []) | {"usage": asked.count()})
        yield END_OF_STREAM
    except ApiError as error:  # The status has long been sent.
        yield make_event(error.body())

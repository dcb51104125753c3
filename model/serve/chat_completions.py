"""/v1/chat/completions: the next message of a chat."""

from collections.abc import AsyncIterator, Sequence

from starlette.requests import Request
from starlette.responses import Response

from model.decode.logprobs import TokenLogprob
from model.serve.chat.messages import Message, read_messages
from model.serve.chat.template import RendererCrash, RenderError
from model.serve.choices import Asked, Choice, bound, collect, read_streaming
from model.serve.drafts import count_texts, make_drafts
from model.serve.house import House, Served, Writing, unless_gone
from model.serve.sampling import MaxTokens, read_settings
from model.serve.spelling import show_bytes
from model.serve.streams import EventStream
from model.serve.wire.answers import END_OF_STREAM, make_event, make_json
from model.serve.wire.errors import ApiError, refuse
from model.serve.wire.fields import Fields, Object

KIND = "chat.completion"
PART = "chat.completion.chunk"
MAX_ALTERNATIVES = 20


class ChatCompletions:
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
            choices = await unless_gone(request, collect(asked, writing))
        finally:
            writing.close()
        answer = asked.wrap(KIND, [show(choice) for choice in choices])
        return make_json({**answer, "usage": asked.count()})

    def read(self, fields: Fields) -> Asked:
        """A request, checked, with its drafts."""
        served = self.house.find(fields)
        served.expect_template()
        wants_logprobs = fields.flag("logprobs")
        num_alternatives = fields.whole("top_logprobs", 0, MAX_ALTERNATIVES)
        if num_alternatives is not None and not wants_logprobs:
            raise refuse("top_logprobs is given without logprobs: true", "top_logprobs")
        older = MaxTokens.read(fields, "max_tokens")
        most = MaxTokens.read(fields, "max_completion_tokens")
        most = older if most.is_default else most
        settings = read_settings(
            fields, served.generator, most, num_alternatives or 0 if wants_logprobs else None
        )
        stream, include_usage = read_streaming(fields)
        returns_ids = fields.flag("return_token_ids")
        messages = read_messages(fields, "messages", ["text"])
        refuse_tools(fields)
        fields.expect("response_format", [{"type": "text"}], "only text is written")
        fields.expect("modalities", [["text"]], "only text is written")
        fields.expect("store", [False], "nothing is stored")
        fields.refuse_others()
        count_texts(1, settings.num_return_sequences, served.batcher.room, "messages")
        prompt = encode_chat(served, messages, "messages")
        drafts = make_drafts(served.generator, [prompt], settings, most, "messages")
        num_samples = settings.num_return_sequences
        return Asked(served, drafts, num_samples, stream, include_usage, returns_ids, "chatcmpl-")


def refuse_tools(fields: Fields) -> None:
    """Refuse what would call functions."""
    for name in ("tools", "functions"):
        fields.expect(name, [[]], "functions are not called")
    for name in ("tool_choice", "function_call"):
        fields.expect(name, ["none", "auto"], "functions are not called")
    fields.ignore("parallel_tool_calls")


def encode_chat(served: Served, messages: Sequence[Message], name: str) -> list[int]:
    """The ids of the prompt of a chat in the field `name`; its special tokens are read as such."""
    try:
        text = served.expect_template().render(messages)
    except RenderError as error:
        told = f"the model's chat template does not take these messages: {error}"
        raise refuse(told, name, "chat_template_error") from None
    except RendererCrash as error:
        told = f"the process that runs the model's chat template crashed: {error}"
        raise ApiError(500, told, "chat_template_crash") from None
    tokens: list[int] = served.chat_tokenizer.encode(text, add_special_tokens=False).ids
    if not tokens:
        raise refuse("the chat template makes an empty prompt of these messages", name)
    return tokens


def show(choice: Choice) -> Object:
    """A whole choice."""
    message = {"role": "assistant", "content": choice.text, "refusal": None}
    return {
        "index": choice.index,
        "message": message,
        "logprobs": show_logprobs(choice),
        **choice.show_end(),
    }


def show_logprobs(choice: Choice) -> Object | None:
    """The log-probabilities as chats have them; None if they are not wanted."""
    if choice.asked.drafts[choice.index].settings.logprobs is None:
        return None
    return {"content": [show_place(choice, scored) for scored in choice.logprobs], "refusal": None}


def show_place(choice: Choice, scored: TokenLogprob) -> Object:
    """One token with its alternatives."""
    places = [show_token(choice, token, logprob) for token, logprob in scored.alternatives]
    assert scored.logprob is not None
    return {**show_token(choice, scored.token, scored.logprob), "top_logprobs": places}


def show_token(choice: Choice, token: int, logprob: float) -> Object:
    """A token as chats have it; its bytes are there for those that are no whole characters."""
    spelled = choice.asked.served.speller.spell(token)
    shown: Object = {
        "token": show_bytes(spelled),
        "logprob": bound(logprob),
        "bytes": [*spelled],
    }
    return shown | ({"token_id": token} if choice.asked.returns_ids else {})


async def stream(asked: Asked, writing: Writing) -> AsyncIterator[bytes]:
    """The answer's events: who speaks, what is new of each text, and its end."""
    extra: Object = {"usage": None} if asked.include_usage else {}
    begun = set[int]()
    try:
        async for update in writing:
            choice = Choice(asked, update.index)
            choice.add(update)
            delta: Object = {"content": choice.text} if choice.text else {}
            if choice.index not in begun:
                begun.add(choice.index)
                delta = {"role": "assistant", "content": choice.text}
            logprobs = show_logprobs(choice)
            if delta or logprobs or choice.ended_by or asked.returns_ids:
                shown = {"index": choice.index, "delta": delta, "logprobs": logprobs}
                yield make_event(asked.wrap(PART, [shown | choice.show_end()]) | extra)
        if asked.include_usage:
            yield make_event(asked.wrap(PART, []) | {"usage": asked.count()})
        yield END_OF_STREAM
    except ApiError as error:  # The status has long been sent.
        yield make_event(error.body())

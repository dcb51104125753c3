"""/v1/responses: the next message of a chat, in the API that OpenAI's client documents first."""

import secrets
import time
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from model.serve.batcher import Update
from model.serve.served import Served
from model.serve.texts.choices import Asked, Choice, Form
from model.serve.texts.drafts import encode_chat, make_drafts
from model.serve.texts.messages import Message, read_messages, refuse_tools
from model.serve.texts.sampling import MaxTokens, read_settings
from model.serve.wire.answers import make_event
from model.serve.wire.errors import ApiError, refuse
from model.serve.wire.fields import Fields, Object

KINDS = ("input_text", "output_text")


@dataclass
class AskedResponse(Asked):
    """A request for a response."""

    instructions: str | None = None
    max_tokens: int | None = None
    metadata: Object = field(default_factory=dict)
    message_id: str = field(default_factory=lambda: f"msg_{secrets.token_hex(16)}")

    prefix: ClassVar[str] = "resp_"

    def answer(self, choices: Sequence[Choice]) -> Object:
        """The response, with its only text."""
        [choice] = choices
        return self.show(choice)

    async def stream(self, updates: AsyncIterable[Update]) -> AsyncIterator[bytes]:
        """The typed events of a response, numbered."""
        events = Events(self.message_id)
        choice = Choice(self, 0)
        yield events.make("response.created", response=self.show(None))
        yield events.make("response.in_progress", response=self.show(None))
        item = self.show_message(None, "in_progress")
        yield events.make("response.output_item.added", output_index=0, item=item)
        yield events.make_for_part("response.content_part.added", part=make_part(""))
        try:
            async for update in updates:
                choice.add(update)
                if update.piece:
                    yield events.make_for_part(
                        "response.output_text.delta", delta=update.piece, logprobs=[]
                    )
        except ApiError as error:
            told = {"code": "server_error", "message": error.message}
            failed = self.show(None) | {"status": "failed", "error": told}
            yield events.make("response.failed", response=failed)
            return
        whole = self.show(choice)
        yield events.make_for_part("response.output_text.done", text=choice.text, logprobs=[])
        yield events.make_for_part("response.content_part.done", part=make_part(choice.text))
        yield events.make("response.output_item.done", output_index=0, item=whole["output"][0])
        yield events.make(f"response.{whole['status']}", response=whole)

    def show(self, choice: Choice | None) -> Object:
        """The response with its text, or before there is one."""
        ended_by = choice and choice.ended_by
        is_cut = ended_by not in (None, "stop", "end_of_text")
        status = "in_progress" if ended_by is None else "incomplete" if is_cut else "completed"
        reason = {"reason": "max_output_tokens"} if is_cut else None
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "error": None,
            "incomplete_details": reason,
            "instructions": self.instructions,
            "max_output_tokens": self.max_tokens,
            "metadata": self.metadata,
            "model": self.served.id,
            "output": [] if choice is None else [self.show_message(choice.text, status)],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": self.settings.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": self.settings.top_p,
            "truncation": "disabled",
            "usage": None if ended_by is None else self.count_response(),
            "ended_by": ended_by,
        }

    def show_message(self, text: str | None, status: str) -> Object:
        """The message that the response consists of; without a text, before it begins."""
        return {
            "id": self.message_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": [] if text is None else [make_part(text)],
        }

    def count_response(self) -> Object:
        """The usage, in this API's words."""
        usage = self.count()
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        }


def make_part(text: str) -> Object:
    """A text as a part of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


class Events:
    """Makes the events of one response."""

    def __init__(self, message_id: str) -> None:
        self.message_id = message_id
        self.number = -1

    def make(self, kind: str, **values: Any) -> bytes:
        """An event of this type."""
        self.number += 1
        return make_event({"type": kind, "sequence_number": self.number, **values}, kind)

    def make_for_part(self, kind: str, **values: Any) -> bytes:
        """One about the text, which is the only part of the only message."""
        place = {"item_id": self.message_id, "output_index": 0, "content_index": 0}
        return self.make(kind, **place, **values)


def read_response(served: Served, fields: Fields) -> AskedResponse:
    """A request, checked, with its draft."""
    served.expect_chats()
    most = MaxTokens.read(fields, "max_output_tokens")
    settings = read_settings(fields, served.generator, most, None)
    if settings.num_return_sequences > 1:
        raise refuse("a response is one text; expected no n", "n")
    form = Form(fields.flag("stream"))
    instructions = fields.text("instructions")
    messages = read_input(fields, instructions)
    metadata = fields.nested("metadata").values
    refuse_tools(fields)
    text = fields.nested("text")
    text.expect("format", [{"type": "text"}], "only text is written")
    text.ignore("verbosity")
    text.refuse_others()
    fields.expect("store", [False], "nothing is stored")
    fields.expect("previous_response_id", [], "nothing is stored; send the whole chat")
    fields.expect("truncation", ["disabled"], "a chat is not cut")
    fields.expect("include", [[]], "there is nothing more to include")
    fields.expect("background", [False], "responses are answered at once")
    fields.refuse_others()
    prompt = encode_chat(served, messages, "input")
    drafts = make_drafts(served.generator, [prompt], settings, most, "input")
    return AskedResponse(
        served,
        drafts,
        form,
        instructions=instructions,
        max_tokens=most.value,
        metadata=metadata,
    )


def read_input(fields: Fields, instructions: str | None) -> list[Message]:
    """The chat: a text or messages, after the instructions."""
    value = fields.get("input")
    if isinstance(value, str):
        messages = [{"role": "user", "content": fields.check_text(value, "input")}]
    else:
        messages = read_messages(fields, "input", KINDS)
    system = [{"role": "system", "content": instructions}] if instructions else []
    return system + messages

"""What all answers are made of: texts as they come, log-probabilities, and the usage."""

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from model.decode.draft import Draft
from model.decode.logprobs import TokenLogprob
from model.serve.batcher import EndReason, Update
from model.serve.served import Served
from model.serve.wire.answers import END_OF_STREAM, make_event
from model.serve.wire.errors import ApiError
from model.serve.wire.fields import Fields, Object

FINISH_REASONS: dict[EndReason, str] = {
    "stop": "stop",
    "end_of_text": "stop",
    "length": "length",
    "context": "length",
    "time": "length",
    "shutdown": "length",
}
# A log-probability that JSON can say, for those that are minus infinity; vLLM's.
LOWEST = -9999.0


@dataclass(frozen=True)
class Form:
    """How an answer is sent, and what it has beside its texts."""

    stream: bool
    include_usage: bool = False  # At a stream's end.
    returns_ids: bool = False


def read_form(fields: Fields) -> Form:
    """The form that completions and chats may ask for."""
    stream = fields.flag("stream")
    options = fields.nested("stream_options")
    include_usage = options.flag("include_usage")
    options.refuse_others()
    return Form(stream, include_usage, fields.flag("return_token_ids"))


@dataclass
class Asked(ABC):
    """A request, checked: the texts that it asks for, all of the first prompt's first.

    And the answer, as it is made of them.
    """

    served: Served
    drafts: Sequence[Draft]
    form: Form
    created: int = field(default_factory=lambda: int(time.time()))
    num_written: int = 0

    prefix: ClassVar[str]  # Of the answer's id.

    def __post_init__(self) -> None:
        self.id = f"{self.prefix}{secrets.token_hex(16)}"
        self.settings = self.drafts[0].settings

    @property
    def measures_prompts(self) -> bool:
        """Whether log-probabilities of the prompts' tokens are wanted."""
        return False

    @abstractmethod
    def answer(self, choices: Sequence["Choice"]) -> Object:
        """The answer with all texts, whole."""

    @abstractmethod
    def stream(self, updates: AsyncIterable[Update]) -> AsyncIterator[bytes]:
        """The answer's events."""

    def count(self) -> Object:
        """The usage so far; a prompt counts once, however many texts it gets."""
        firsts = self.drafts[:: self.settings.num_return_sequences]
        num_prompt = sum(draft.num_prompt_tokens for draft in firsts)
        return {
            "prompt_tokens": num_prompt,
            "completion_tokens": self.num_written,
            "total_tokens": num_prompt + self.num_written,
        }


class AskedChoices(Asked):
    """A request that is answered by a list of choices, or by a stream of what is new of them."""

    kind: ClassVar[str]
    part_kind: ClassVar[str]

    @abstractmethod
    def show(self, choice: "Choice") -> Object:
        """A whole choice."""

    @abstractmethod
    def show_part(self, choice: "Choice") -> Object | None:
        """What is new of a choice; None if that is nothing."""

    def answer(self, choices: Sequence["Choice"]) -> Object:
        """All choices, and the usage."""
        shown = [self.show(choice) for choice in choices]
        return {**self.wrap(self.kind, shown), "usage": self.count()}

    async def stream(self, updates: AsyncIterable[Update]) -> AsyncIterator[bytes]:
        """Events, each with what is new of one text."""
        extra: Object = {"usage": None} if self.form.include_usage else {}
        try:
            async for update in updates:
                choice = Choice(self, update.index)
                choice.add(update)
                if shown := self.show_part(choice):
                    yield make_event(self.wrap(self.part_kind, [shown]) | extra)
            if self.form.include_usage:
                yield make_event(self.wrap(self.part_kind, []) | {"usage": self.count()})
            yield END_OF_STREAM
        except ApiError as error:  # The status has long been sent.
            yield make_event(error.body())

    def wrap(self, kind: str, choices: list[Object]) -> Object:
        """An answer, or a part of a streamed one, with these choices."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.served.id,
            "choices": choices,
        }


@dataclass
class Choice:
    """One text, or what is new of it."""

    asked: Asked
    index: int
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    ended_by: EndReason | None = None

    def add(self, update: Update) -> None:
        """Add what was written."""
        self.text += update.piece
        self.tokens += update.tokens
        self.logprobs += update.logprobs
        self.prompt_logprobs += update.prompt_logprobs
        self.ended_by = update.ended_by
        self.asked.num_written += len(update.tokens)

    def show_end(self) -> Object:
        """Why the text ended, in OpenAI's words and in ours; what it consists of, if asked for."""
        shown: Object = {
            "finish_reason": self.ended_by and FINISH_REASONS[self.ended_by],
            "ended_by": self.ended_by,
        }
        if self.asked.form.returns_ids:
            draft = self.asked.drafts[self.index]
            shown["prompt_token_ids"] = draft.tokens[: draft.num_prompt_tokens]
            shown["token_ids"] = self.tokens
        return shown


async def collect(asked: Asked, updates: AsyncIterable[Update]) -> list[Choice]:
    """All texts, whole."""
    choices = [Choice(asked, i) for i in range(len(asked.drafts))]
    async for update in updates:
        choices[update.index].add(update)
    return choices


def bound(logprob: float) -> float:
    """A log-probability as JSON can say it."""
    return max(logprob, LOWEST)

"""What all answers are made of: texts as they come, log-probabilities, and the usage."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from model.decode.draft import Draft
from model.decode.logprobs import TokenLogprob
from model.serve.batcher import EndReason, Update
from model.serve.house import Served, Writing
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


@dataclass
class Asked:
    """A request, checked: the texts that it asks for, and how they are sent."""

    served: Served
    drafts: Sequence[Draft]
    num_samples: int  # Texts per prompt; all of the first prompt's come first.
    stream: bool
    include_usage: bool
    returns_ids: bool
    prefix: str  # Of the answer's id.
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.id = f"{self.prefix}{secrets.token_hex(16)}"
        self.num_written = 0

    def count(self) -> Object:
        """The usage so far; a prompt counts once, however many texts it gets."""
        num_prompt = sum(draft.num_prompt_tokens for draft in self.drafts[:: self.num_samples])
        return {
            "prompt_tokens": num_prompt,
            "completion_tokens": self.num_written,
            "total_tokens": num_prompt + self.num_written,
        }

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
        if self.asked.returns_ids:
            draft = self.asked.drafts[self.index]
            shown["prompt_token_ids"] = draft.tokens[: draft.num_prompt_tokens]
            shown["token_ids"] = self.tokens
        return shown


def read_streaming(fields: Fields) -> tuple[bool, bool]:
    """Whether the answer is a stream, and whether that ends with the usage."""
    stream = fields.flag("stream")
    options = fields.nested("stream_options")
    include_usage = options.flag("include_usage")
    options.refuse_others()
    return stream, include_usage


def bound(logprob: float) -> float:
    """A log-probability as JSON can say it."""
    return max(logprob, LOWEST)


async def collect(asked: Asked, writing: Writing) -> list[Choice]:
    """All texts, whole."""
    choices = [Choice(asked, i) for i in range(len(asked.drafts))]
    async for update in writing:
        choices[update.index].add(update)
    return choices

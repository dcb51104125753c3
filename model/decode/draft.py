"""One text as it is being written: its tokens, its text so far, and why it ended."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from model.decode.history import History
from model.decode.logprobs import TokenLogprob
from model.decode.lookup import Lookup
from model.decode.settings import Settings
from model.decode.text_stream import TextStream

FinishReason = Literal["stop", "end_of_text", "length", "context"]


@dataclass(frozen=True)
class Completion:
    """A finished text."""

    # The prompt and what was generated, up to where it ended.
    text: str
    # Token ids of the prompt and of everything generated, including what ended it.
    tokens: tuple[int, ...]
    num_prompt_tokens: int
    # It reached a stop string, a token such as <|endoftext|>, max_length, or the end of the model's
    # context.
    finish_reason: FinishReason
    # Of each generated token, where the settings ask for them.
    logprobs: tuple[TokenLogprob, ...] | None = None
    score: float | None = None  # Of a text that beam search found.


@dataclass(eq=False)
class Draft:
    """A text that grows by `add` until it has a finish_reason."""

    index: int  # Its place among the requested texts.
    settings: Settings
    text: str
    tokens: list[int]
    num_prompt_tokens: int
    ends: Collection[int]  # Any of these tokens ends it.
    limit: int  # It ends at this many tokens at the latest,
    limit_reason: FinishReason  # and this is then why.
    stream: TextStream
    random: torch.Generator  # Used for this text alone.
    bad_words: Collection[tuple[int, ...]] = ()  # None of these rows of tokens is ever completed.
    logprobs: list[TokenLogprob] = field(default_factory=list)
    history: History = field(default_factory=History)
    lookup: Lookup = field(default_factory=Lookup)
    finish_reason: FinishReason | None = None
    rank: int = 0  # Its place among the texts of its prompt.
    score: float | None = None  # Of a text that beam search found.

    def branch(self) -> "Draft":
        """A draft that has come as far, and goes on by itself."""
        return replace(
            self,
            tokens=self.tokens.copy(),
            logprobs=self.logprobs.copy(),
            stream=self.stream.branch(),
            history=self.history.branch(),
        )

    def become(self, other: "Draft") -> str:
        """Go on as a branch of this one did; return the text that it has added."""
        piece = other.text.removeprefix(self.text)
        self.tokens, self.text, self.logprobs = other.tokens, other.text, other.logprobs
        self.finish_reason, self.score = other.finish_reason, other.score
        return piece

    def add(self, token: int) -> str:
        """Add a generated token; return the text that it makes certain."""
        self.tokens.append(token)
        if token in self.ends:
            piece = self.stream.finish()
            self.finish_reason = "end_of_text"
        else:
            piece = self.stream.push(token)
            if len(self.tokens) == self.limit:
                piece += self.stream.finish()
                self.finish_reason = self.limit_reason
        if self.stream.stopped:
            self.finish_reason = "stop"
        self.text += piece
        return piece

    def guess(self) -> list[int]:
        """Tokens that may come next, for the model to look at together; usually none."""
        num_wanted = self.settings.prompt_lookup_num_tokens
        # One that is chosen anyway comes behind them.
        return self.lookup.propose(self.tokens, min(num_wanted, self.limit - len(self.tokens) - 1))

    def complete(self) -> Completion:
        """The finished text, once it has ended."""
        assert self.finish_reason is not None
        logprobs = None if self.settings.logprobs is None else tuple(self.logprobs)
        return Completion(
            self.text,
            tuple(self.tokens),
            self.num_prompt_tokens,
            self.finish_reason,
            logprobs,
            self.score,
        )


def make_random(seed: int, prompt: str, num_earlier: int) -> torch.Generator:
    """A generator seeded by the seed, the prompt, and how often the prompt was used before.

    So a prompt gives the same text in any batch, and several samples of it differ.
    """
    digest = hashlib.sha256(f"{seed} {num_earlier} {prompt}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))

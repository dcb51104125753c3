"""One text while it is written: its tokens, its words so far, and why it ended."""

import hashlib
from dataclasses import dataclass
from typing import Literal

import torch

from model.decode.text_stream import TextStream

FinishReason = Literal["stop", "end_of_text", "length", "context"]


@dataclass(frozen=True)
class Completion:
    """A written text."""

    # The prompt, and what was generated up to where it ended.
    text: str
    # The ids of the prompt and of all that was generated, the ending included.
    tokens: tuple[int, ...]
    num_prompt_tokens: int
    # It met a stop string, or <|endoftext|>, or max_length, or the end of the model's context.
    finish_reason: FinishReason


@dataclass
class Draft:
    """A text that grows by `add` until it has a finish_reason."""

    index: int  # Its place among the texts that were asked for.
    text: str
    tokens: list[int]
    num_prompt_tokens: int
    end_of_text: int
    limit: int  # The number of tokens at which it ends at the latest,
    limit_reason: FinishReason  # and what that end is called.
    stream: TextStream
    random: torch.Generator  # Drawn from for this text alone.
    finish_reason: FinishReason | None = None

    def add(self, token: int) -> str:
        """Add a generated token; return the text that has become certain by it."""
        self.tokens.append(token)
        if token == self.end_of_text:
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

    def complete(self) -> Completion:
        """The written text, once it has ended."""
        assert self.finish_reason is not None
        return Completion(self.text, tuple(self.tokens), self.num_prompt_tokens, self.finish_reason)


def make_random(seed: int, prompt: str, num_earlier: int) -> torch.Generator:
    """Random numbers that depend on the seed, the prompt, and how often it was used before.

    So a prompt gives the same text in any batch, and several different texts if asked for.
    """
    digest = hashlib.sha256(f"{seed} {num_earlier} {prompt}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))

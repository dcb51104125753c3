"""Messages become tokens, with a record of which ones an assistant wrote: for prep and serving.

What an assistant wrote is what a template has between {% generation %} and {% endgeneration %}.
For a template without these tags it is what an answer adds to the text that asks for it:

    asked       <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n
    answered    <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\nHello.<|im_end|>\\n
                                                                      ~~~~~~~~~~~~~~~~
It ends with the special token that ends a turn, or the template is refused: a model that never
learns to end its turn would write for ever.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from model.chat.guard import Guard, Json, StandIns, rename_tokens
from model.chat.template import Asked, ChatTemplate, RenderError
from model.checkpoints.tokenizer import (
    TokenizerPanic,
    count_least,
    find_longest_token,
    naming_panics,
)

# The roles that messages may have; a developer's messages are what system messages were.
ROLES = ("system", "developer", "user", "assistant", "tool")
ASSISTANT = "assistant"
TAG = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
# Texts that are rendered at a time.
BATCH_CHATS = 64

Int64 = npt.NDArray[np.int64]
Message = Mapping[str, Any]


class TooLong(Exception):
    """A prompt that has more tokens than are allowed, by its size alone: so many at least."""

    def __init__(self, least: int) -> None:
        super().__init__(f"the prompt has at least {least:,} tokens")
        self.least = least


class TemplateFault(Exception):
    """A template that does not show what an assistant wrote; the message is a clause saying why."""


@dataclass(frozen=True)
class Chat:
    """A chat that is trained on: what the assistant wrote from message `first_trained` on.

    But for the messages at the places `left_out`.
    """

    messages: Sequence[Message]
    first_trained: int = 0
    left_out: frozenset[int] = frozenset()

    @property
    def answers(self) -> list[int]:
        """The places of the messages that are trained on."""
        return [
            place
            for place in range(self.first_trained, len(self.messages))
            if self.messages[place]["role"] == ASSISTANT and place not in self.left_out
        ]


@dataclass(frozen=True)
class EncodedChat:
    """A chat's text and tokens, and which tokens are trained on: (spans, 2), half open."""

    text: str
    ids: Int64
    spans: Int64


@dataclass(frozen=True)
class Marked:
    """A chat's text with stand-ins, and the spans (begin, end) of it that are trained on."""

    text: str
    spans: list[tuple[int, int]]
    stand_ins: StandIns


class ChatEncoder:
    """Makes tokens of messages: by a template, and with a tokenizer.json."""

    def __init__(self, template: ChatTemplate, tokenizer_json: str) -> None:
        raw: Json = json.loads(tokenizer_json)
        self.template = template
        specials = [t["content"] for t in raw.get("added_tokens", []) if t["special"]]
        reserved = "".join([template.source, *template.variables.values()])
        self.guard = Guard(specials, reserved)
        self.tokenizer = Tokenizer.from_str(json.dumps(rename_tokens(raw, self.guard.names)))
        self.tokenizer.encode_special_tokens = False
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.has_tags = TAG.search(template.source) is not None

    @cached_property
    def longest_token(self) -> int | None:
        """The most bytes of a text that one token can stand for; None if that has no bound."""
        return find_longest_token(self.tokenizer)

    def encode_prompt(self, messages: Sequence[Message], most: int | None = None) -> list[int]:
        """The ids of the text that asks for the next message.

        Raises as `render` does, TokenizerPanic for a text that it makes which has none, and
        TooLong, before it is encoded, for one that is too large for `most` tokens.
        """
        protected, stand_ins = self.guard.protect([dict(message) for message in messages])
        text = self.template.render(protected)
        named, _ = self.guard.name_tokens(text, [])
        whole = stand_ins.restore(named)
        if most is not None and (least := count_least(whole, self.longest_token)) > most:
            raise TooLong(least)
        with naming_panics():
            encoding = self.tokenizer.encode(whole, add_special_tokens=False)
        ids: list[int] = encoding.ids
        return ids

    def encode(self, chats: Sequence[Chat]) -> list[EncodedChat | RenderError | TemplateFault]:
        """Each chat's tokens, or why there are none. Raises RendererCrash."""
        results: list[EncodedChat | RenderError | TemplateFault] = []
        waiting = iter(chats)
        while batch := list(islice(waiting, BATCH_CHATS)):
            results += self._encode_batch(batch)
        return results

    def _encode_batch(
        self, chats: Sequence[Chat]
    ) -> list[EncodedChat | RenderError | TemplateFault]:
        marked = self._mark_tagged(chats) if self.has_tags else self._mark_answers(chats)
        texts, edges = [], []
        for found in marked:
            if isinstance(found, Marked):
                places = [place for span in found.spans for place in span]
                named, places = self.guard.name_tokens(found.text, places)
                texts.append(found.stand_ins.restore(named))
                edges.append(np.array(places, np.int64).reshape(-1, 2))
        encodings = iter(self._encode_texts(texts))
        spans = iter(edges)
        results: list[EncodedChat | RenderError | TemplateFault] = []
        for found in marked:
            if isinstance(found, Marked):
                encoding, chosen = next(encodings), next(spans)
                if isinstance(encoding, RenderError):
                    results.append(encoding)
                    continue
                ids = np.array(encoding.ids, np.int64)
                text = found.stand_ins.restore(found.text)
                results.append(EncodedChat(text, ids, find_tokens(encoding.offsets, chosen)))
            else:
                results.append(found)
        return results

    def _encode_texts(self, texts: Sequence[str]) -> list[Encoding | RenderError]:
        """Each text encoded, or why it cannot be, which costs no other."""
        try:
            with naming_panics():
                return [*self.tokenizer.encode_batch(texts, add_special_tokens=False)]
        except TokenizerPanic as error:
            if len(texts) == 1:
                return [RenderError(str(error))]
        return [encoded for text in texts for encoded in self._encode_texts([text])]

    def _mark_tagged(self, chats: Sequence[Chat]) -> list[Marked | RenderError | TemplateFault]:
        """The texts of chats, by the tags of the template."""
        protected = [self._protect(chat) for chat in chats]
        asked = [Asked(p[0], marks=p[1].marks) for p in protected if not isinstance(p, RenderError)]
        results: list[Marked | RenderError | TemplateFault] = []
        answers = iter(self.template.render_all(asked))
        for chat, guarded in zip(chats, protected, strict=True):
            if isinstance(guarded, RenderError):
                results.append(guarded)
                continue
            answer, (messages, stand_ins) = next(answers), guarded
            if isinstance(answer, RenderError):
                results.append(answer)
                continue
            text, spans = stand_ins.cut_marks(answer)
            turns = [i for i, m in enumerate(messages) if m["role"] == ASSISTANT]
            if len(spans) != len(turns):
                results.append(
                    TemplateFault(
                        f"it has {len(spans)} parts in {{% generation %}} for {len(turns)} turns "
                        "of the assistant"
                    )
                )
                continue
            trained = {*chat.answers}
            chosen = [s for s, i in zip(spans, turns, strict=True) if i in trained]
            fault = self._find_open_turn(text, chosen)
            results.append(TemplateFault(fault) if fault else Marked(text, chosen, stand_ins))
        return results

    def _mark_answers(self, chats: Sequence[Chat]) -> list[Marked | RenderError | TemplateFault]:
        """The texts of chats, by what each answer adds to the text that asks for it."""
        asked: list[Asked] = []
        plans: list[tuple[StandIns, int] | RenderError] = []
        for chat in chats:
            guarded = self._protect(chat)
            if isinstance(guarded, RenderError):
                plans.append(guarded)
                continue
            messages, stand_ins = guarded
            before = len(asked)
            for i in chat.answers:
                asked += [Asked(messages[:i], asks=True), Asked(messages[: i + 1])]
            # If the last message is trained on, the text that it ends is the whole.
            if len(asked) == before or chat.answers[-1] != len(messages) - 1:
                asked.append(Asked(messages))
            plans.append((stand_ins, len(asked) - before))
        answers = iter(self.template.render_all(asked))
        return [
            plan
            if isinstance(plan, RenderError)
            else self._mark_one([next(answers) for _ in range(plan[1])], plan[0])
            for plan in plans
        ]

    def _protect(self, chat: Chat) -> tuple[list[Json], StandIns] | RenderError:
        """A chat's messages with stand-ins, or why there are none."""
        try:
            return self.guard.protect([*map(dict, chat.messages)])
        except RenderError as error:
            return error

    def _mark_one(
        self, answers: list[str | RenderError], stand_ins: StandIns
    ) -> Marked | RenderError | TemplateFault:
        """A chat, by the texts that ask for each answer and that it ends; the last is the whole."""
        texts = [answer for answer in answers if isinstance(answer, str)]
        if len(texts) < len(answers):
            return next(answer for answer in answers if isinstance(answer, RenderError))
        whole, spans = texts[-1], []
        for asking, answered in zip(texts[::2], texts[1::2], strict=False):
            # What comes after the end of the turn is the next one's.
            begin, end = len(asking), len(answered.rstrip())
            if answered[:begin] != asking or whole[:end] != answered[:end]:
                return TemplateFault(
                    "the text with an answer does not continue the text that asks for it; put "
                    "{% generation %} and {% endgeneration %} around what the assistant writes"
                )
            spans.append((begin, end))
        fault = self._find_open_turn(whole, spans)
        return TemplateFault(fault) if fault else Marked(whole, spans, stand_ins)

    def _find_open_turn(self, text: str, spans: list[tuple[int, int]]) -> str | None:
        """Why what an assistant wrote does not end with the end of its turn, in words."""
        for begin, end in spans:
            if self.find_last(text[begin:end]) is not None:
                continue
            after = text[end:].lstrip()
            following = [token for token in self.guard.names if after.startswith(token)]
            if following:
                return (
                    f"it leaves {following[0]}, which ends an assistant's turn, outside of what is "
                    "trained on, so that a model would never learn to stop; put it inside of "
                    "{% generation %}"
                )
            return (
                "no special token of the tokenizer ends an assistant's turn, so that a model would "
                "never learn to stop; end it with eos_token, or another special token"
            )
        return None

    def find_last(self, text: str) -> str | None:
        """The special token that a text ends with, but for blanks; None if it ends otherwise."""
        text = text.rstrip()
        return next((token for token in self.guard.names if text.endswith(token)), None)


def find_tokens(offsets: Sequence[tuple[int, int]], spans: Int64) -> Int64:
    """The tokens that hold any character of each span of characters: (spans, 2), half open.

    A token that reaches over an edge is of the span; none is of two.
    """
    edges = np.array(offsets, np.int64).reshape(-1, 2)
    first = np.searchsorted(edges[:, 1], spans[:, 0], side="right")
    last = np.searchsorted(edges[:, 0], spans[:, 1], side="left")
    first[1:] = np.maximum(first[1:], last[:-1])
    found: Int64 = np.stack([first, last], axis=1)
    return found[first < last]

"""A chat with a model: its turns, the prompt that is made of them, and the answers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from model.decode.draft import Draft, FinishReason
from model.decode.generator import Generator
from model.decode.settings import LONE_SURROGATES, Settings
from model.decode.text_stream import REPLACEMENT
from model.sample.console import Show

Message = dict[str, str]
# Messages to the ids of the prompt for the next one; ValueError where a template takes them not.
Encode = Callable[[Sequence[Message]], list[int]]
# The share of the context that is kept for an answer, if nothing says how long it may be.
ROOM = 4


@dataclass(frozen=True)
class Turn:
    """A question and its answer."""

    question: str
    answer: str
    # Why the answer ended; None if it was stopped.
    ended_by: FinishReason | None
    num_prompt_tokens: int
    num_tokens: int

    @property
    def is_whole(self) -> bool:
        """Whether the model ended its answer itself, or a stop string did."""
        return self.ended_by in ("end_of_text", "stop")


class Conversation:
    """A conversation with a model.

    `turns` are all of it; the model is given those from `first` on, as many as fit its context.
    """

    def __init__(self, generator: Generator, encode: Encode, system: str | None, say: Show) -> None:
        self.generator, self.encode, self.say = generator, encode, say
        self.system = system
        self.turns: tuple[Turn, ...] = ()
        self.first = 0

    def ask(self, question: str, settings: Settings, show: Show, again: bool = False) -> Turn:
        """Put a question and show the answer as it comes, which is then the last turn.

        What was written before KeyboardInterrupt is a turn, too; so long as that is nothing, all
        is as it was. With `again`, the turn takes the place of the last one. Raises ValueError for
        a question that does not fit the model's context or that the template does not take.
        """
        earlier = self.turns[:-1] if again else self.turns
        question = LONE_SURROGATES.sub(REPLACEMENT, question)
        settings = replace(settings, num_return_sequences=1)
        if settings.max_length is None and settings.max_new_tokens is None:
            settings = replace(settings, max_new_tokens=self.generator.context)
        first, prompt = self._fit(earlier, question, settings)
        [draft] = self.generator.start([prompt], settings)
        pieces = list[str]()
        try:
            for _, piece in self.generator.write([draft]):
                pieces.append(piece)
                show(piece)
        finally:
            if draft.finish_reason or any(pieces):
                turn = describe(question, "".join(pieces), draft)
                self.first, self.turns = first, (*earlier, turn)
        return turn

    def say_end(self, turn: Turn) -> None:
        """Say why an answer ended, if it was because there was no more room."""
        if turn.ended_by == "context":
            self.say(
                f"velocity: the answer ends here because the model's context, "
                f"{self.generator.context:,} tokens, is full"
            )

    def list_messages(self) -> list[Message]:
        """The whole conversation as messages, the system prompt first."""
        return list(list_messages(self.system, self.turns))

    def undo(self) -> None:
        """Forget the last turn; turns that were left out for it may fit again."""
        self.turns, self.first = self.turns[:-1], 0

    def reset(self) -> None:
        """Forget all turns."""
        self.turns, self.first = (), 0

    def _fit(
        self, earlier: Sequence[Turn], question: str, settings: Settings
    ) -> tuple[int, list[int]]:
        """The first turn that the model is given, and its prompt, which leaves room for an answer.

        So much as the settings say, but no more than half of the context.
        """
        context = self.generator.context
        given = settings.max_new_tokens
        room = context // ROOM if given is None or given >= context else min(given, context // 2)
        asked = {"role": "user", "content": question}
        first = min(self.first, len(earlier))
        while True:
            prompt = self.encode([*list_messages(self.system, earlier[first:]), asked])
            if len(prompt) + room <= context or first == len(earlier):
                break
            first += 1
        if len(prompt) >= context:
            raise ValueError(
                f"this message and the system prompt have {len(prompt):,} tokens, the model's "
                f"context is {context:,}; shorten them"
            )
        if first > self.first:
            turns = "turn" if first == 1 else f"{first} turns"
            self.say(
                f"velocity: the model no longer sees the first {turns}: its context of "
                f"{context:,} tokens holds no more"
            )
        return first, prompt


def list_messages(system: str | None, turns: Sequence[Turn]) -> Iterator[Message]:
    """Turns as messages after the system prompt, if there is one."""
    if system:
        yield {"role": "system", "content": system}
    for turn in turns:
        yield {"role": "user", "content": turn.question}
        yield {"role": "assistant", "content": turn.answer}


def describe(question: str, answer: str, draft: Draft) -> Turn:
    """The turn that a draft became."""
    num_new = len(draft.tokens) - draft.num_prompt_tokens
    return Turn(question, answer, draft.finish_reason, draft.num_prompt_tokens, num_new)

"""From a request's prompts to the drafts that the batcher writes."""

import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from model.decode.draft import Draft, make_random
from model.decode.generator import Generator
from model.decode.settings import Settings
from model.decode.text_stream import TextStream
from model.serve.wire.errors import ApiError, refuse


@dataclass(frozen=True)
class Prompt:
    """A prompt as text and as the model's input."""

    text: str
    tokens: tuple[int, ...]


def encode(generator: Generator, text: str) -> Prompt:
    """A prompt given as text; an empty one is the beginning of a document."""
    tokens = generator.tokenizer.encode(text).ids
    return Prompt(text, tuple(tokens) or (generator.begin,))


def decode(generator: Generator, tokens: Sequence[int]) -> Prompt:
    """A prompt given as token ids, which need not be those that its text would have."""
    text: str = generator.tokenizer.decode([*tokens], skip_special_tokens=False)
    return Prompt(text, tuple(tokens))


def make_drafts(
    generator: Generator,
    prompts: Sequence[Prompt],
    settings: Settings,
    num_new: int | None,
    param: str,
) -> list[Draft]:
    """A draft for each text: all of the first prompt's first, as `velocity sample` has them.

    With the same seed they become the same texts. At most `num_new` tokens are added to each, or
    as many as the context has room for. Raises ApiError for a prompt that leaves too little room.
    """
    seed = secrets.randbits(63) if settings.seed is None else settings.seed
    num_uses = Counter[str]()
    drafts: list[Draft] = []
    for prompt in prompts:
        limit = find_limit(generator.context, len(prompt.tokens), num_new, param)
        for _ in range(settings.num_return_sequences):
            draft = Draft(
                index=len(drafts),
                text=prompt.text,
                tokens=[*prompt.tokens],
                num_prompt_tokens=len(prompt.tokens),
                ends=generator.ends,
                limit=limit,
                limit_reason="context" if num_new is None else "length",
                stream=TextStream(
                    generator.tokenizer, settings.stops, prompt.tokens if prompt.text else ()
                ),
                random=make_random(seed, prompt.text, num_uses[prompt.text]),
                settings=settings,
            )
            num_uses[prompt.text] += 1
            drafts.append(draft)
    return drafts


def find_limit(context: int, num_prompt: int, num_new: int | None, param: str) -> int:
    """The most tokens that a text may have, its prompt included."""
    wanted = num_prompt + (1 if num_new is None else num_new)
    if wanted > context:
        raise ApiError(
            400,
            f"the model's context is {context:,} tokens; the prompt has {num_prompt:,}"
            + (f", and {param} asks for {num_new:,} more" if num_new else "")
            + "; shorten one of them",
            "context_length_exceeded",
            "prompt" if num_prompt + 1 > context else param,
        )
    return context if num_new is None else wanted


def count_texts(num_prompts: int, num_samples: int, room: int) -> None:
    """Refuse a request for more texts than there is room for, even when nobody else is there."""
    if num_prompts * num_samples > room:
        raise refuse(
            f"the request asks for {num_prompts * num_samples:,} texts (prompts times n); this "
            f"server takes at most {room:,} at a time",
            "n",
        )

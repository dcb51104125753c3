"""From a request's prompts to the drafts that the batcher writes."""

import secrets
from collections.abc import Sequence
from dataclasses import replace

from model.decode.draft import Draft
from model.decode.generator import Generator
from model.decode.settings import Settings
from model.serve.wire.errors import ApiError, refuse

Prompt = str | list[int]


def make_drafts(
    generator: Generator,
    prompts: Sequence[Prompt],
    settings: Settings,
    num_new: int | None,
    param: str,
) -> list[Draft]:
    """A draft for each text: all of the first prompt's first, as `velocity sample` has them.

    With the same seed they become the same texts. At most `num_new` tokens are added to each, or as
    many as the context has room for if it is None; `param` is the field that says so. Raises
    ApiError for a prompt that leaves too little room, and for settings that no text can have.
    """
    context = generator.context
    seed = secrets.randbits(63) if settings.seed is None else settings.seed
    try:
        settings = replace(settings, seed=seed, max_new_tokens=num_new or context)
        drafts = generator.start(prompts, settings)
    except ValueError as error:
        is_long = "context" in str(error)
        raise refuse(
            str(error),
            "prompt" if is_long else None,
            "context_length_exceeded" if is_long else "invalid_value",
        ) from None
    for draft in drafts:
        num_prompt = draft.num_prompt_tokens
        if num_new is None:
            continue
        if num_prompt + num_new > context:
            raise ApiError(
                400,
                f"the model's context is {context:,} tokens; the prompt has {num_prompt:,}, and "
                f"{param} asks for {num_new:,} more; shorten one of them",
                "context_length_exceeded",
                param,
            )
        draft.limit = num_prompt + num_new
        draft.limit_reason = "length"
    return drafts


def count_texts(num_prompts: int, num_samples: int, room: int) -> None:
    """Refuse a request for more texts than there is room for, even when nobody else is there."""
    if num_prompts * num_samples > room:
        raise refuse(
            f"the request asks for {num_prompts * num_samples:,} texts (prompts times n); this "
            f"server takes at most {room:,} at a time",
            "n",
        )

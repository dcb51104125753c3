"""From a request's prompts to the drafts that the batcher writes."""

from collections.abc import Sequence

from model.chat.encode import TooLong
from model.chat.template import RendererCrash, RenderError
from model.checkpoints.tokenizer import TokenizerPanic
from model.decode.draft import Draft
from model.decode.generator import ContextExceeded, Generator
from model.decode.settings import Settings
from model.serve.served import Served
from model.serve.texts.messages import Message
from model.serve.texts.sampling import MaxTokens
from model.serve.wire.errors import ApiError, refuse

Prompt = str | list[int]


def make_drafts(
    generator: Generator,
    prompts: Sequence[Prompt],
    settings: Settings,
    most: MaxTokens,
    name: str,
) -> list[Draft]:
    """A draft for each text: all of the first prompt's first, as `velocity sample` has them.

    With the same seed they become the same texts. The prompts are those of the field `name`. Raises
    ApiError for one that leaves no room for as many tokens as are asked for.
    """
    num_new = 1 if most.value is None else most.value
    try:
        drafts = generator.start(prompts, settings, min_room=num_new)
    except TokenizerPanic as error:
        raise refuse(str(error), name, "tokenizer_error") from None
    except ContextExceeded as error:
        if error.num_tokens >= generator.context:
            raise refuse(str(error), name, "context_length_exceeded") from None
        asks = "asks, if it is not given," if most.is_default else "asks"
        raise refuse(
            f"the model's context is {generator.context:,} tokens; the prompt has "
            f"{error.num_tokens:,}, and {most.name} {asks} for {num_new:,} more; shorten one "
            "of them",
            name if most.is_default else most.name,
            "context_length_exceeded",
        ) from None
    if num_new == 0:
        for draft in drafts:
            draft.limit, draft.limit_reason = draft.num_prompt_tokens, "length"
    return drafts


def encode_chat(served: Served, messages: Sequence[Message], name: str) -> list[int]:
    """The ids of the prompt of a chat in the field `name`: the same that prep makes of it."""
    context = served.generator.context
    try:
        tokens = served.expect_chats().encode_prompt(messages, context)
    except TooLong as error:
        told = str(ContextExceeded(error.least, context, is_least=True))
        raise refuse(told, name, "context_length_exceeded") from None
    except RenderError as error:
        told = f"the model's chat template does not take these messages: {error}"
        raise refuse(told, name, "chat_template_error") from None
    except TokenizerPanic as error:
        raise refuse(str(error), name, "tokenizer_error") from None
    except RendererCrash as error:
        told = f"the process that runs the model's chat template crashed: {error}"
        raise ApiError(500, told, "chat_template_crash") from None
    if not tokens:
        raise refuse("the chat template makes an empty prompt of these messages", name)
    return tokens


def count_texts(num_prompts: int, num_samples: int, room: int, name: str) -> None:
    """Refuse a request for more texts than there is room for, even when nobody else is there."""
    if num_prompts * num_samples > room:
        raise refuse(
            f"the request asks for {num_prompts * num_samples:,} texts (prompts times n); this "
            f"server takes at most {room:,} at a time",
            "n" if num_samples > 1 else name,
        )

"""A model that requests may name, with all that its texts need."""

from dataclasses import dataclass
from functools import cached_property

from model.chat.encode import ChatEncoder
from model.chat.template import ChatTemplate
from model.decode.generator import Generator
from model.serve.batcher import Batcher
from model.serve.texts.spelling import Speller
from model.serve.wire.errors import refuse
from model.serve.wire.fields import Object


@dataclass
class Served:
    """A model that requests may name."""

    id: str
    generator: Generator
    batcher: Batcher
    created: int  # Seconds since 1970.
    template: ChatTemplate | None = None

    def __post_init__(self) -> None:
        self.speller = Speller(self.generator.tokenizer)

    @cached_property
    def chats(self) -> ChatEncoder | None:
        """What makes a prompt of a chat; None without a template."""
        if self.template is None:
            return None
        return ChatEncoder(self.template, self.generator.tokenizer.to_str())

    def expect_chats(self) -> ChatEncoder:
        """What makes a prompt of a chat; a 400 if there is no template."""
        if self.chats is None:
            raise refuse(
                f"{self.id} has no chat template, so it was not trained on chats; ask "
                "/v1/completions instead",
                "model",
                "no_chat_template",
            )
        return self.chats

    def describe(self) -> Object:
        """The model as /v1/models lists it."""
        return {
            "id": self.id,
            "object": "model",
            "created": self.created,
            "owned_by": "velocity",
            "max_model_len": self.generator.context,
            "chat": self.template is not None,
        }

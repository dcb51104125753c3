"""A model that requests may name, with all that its texts need."""

from dataclasses import dataclass
from functools import cached_property

from tokenizers import Tokenizer

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
    def chat_tokenizer(self) -> Tokenizer:
        """The tokenizer for templates: what spells a special token there means it."""
        tokenizer = Tokenizer.from_str(self.generator.tokenizer.to_str())
        tokenizer.encode_special_tokens = False
        return tokenizer

    def expect_template(self) -> ChatTemplate:
        """The chat template; a 400 if there is none."""
        if self.template is None:
            raise refuse(
                f"{self.id} has no chat template, so it was not trained on chats; ask "
                "/v1/completions instead",
                "model",
                "no_chat_template",
            )
        return self.template

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

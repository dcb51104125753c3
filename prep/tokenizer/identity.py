"""Which tokenizer a set is made with, in the words of its plan and its manifest."""

import hashlib
from dataclasses import dataclass

from prep.tokenizer.gpt2 import END_OF_TEXT, VOCAB_SIZE, build_gpt2_json
from shards.widths import choose_token_bytes


@dataclass(frozen=True)
class SetTokenizer:
    """What decides the ids of a set, besides the texts."""

    name: str
    # Of the set's tokenizer.json.
    sha256: str
    vocab_size: int
    # The ids after each document and, if it was asked for, before it.
    end_of_text: int
    begin_of_text: int | None = None

    @property
    def token_bytes(self) -> int:
        """The bytes of an id in the set's shards."""
        return choose_token_bytes(self.vocab_size)


def identify_gpt2() -> SetTokenizer:
    """GPT-2's tokenizer, the default."""
    sha256 = hashlib.sha256(build_gpt2_json().encode("utf-8")).hexdigest()
    return SetTokenizer("gpt2", sha256, VOCAB_SIZE, END_OF_TEXT)

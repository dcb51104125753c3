"""The settings of what a run reads: sections `data` and `tokenizer`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DataConfig:
    """Section `data` of a run's settings."""

    # The folder that `velocity prep --out` wrote.
    shards: str = "shards/"
    # Tokens a sample feeds the model; a window is one token longer.
    max_seq_length: int = 2048

    def __post_init__(self) -> None:
        if self.max_seq_length < 1:
            raise ValueError(
                f"data.max_seq_length is {self.max_seq_length}; expected at least 1 token"
            )


@dataclass(frozen=True)
class TokenizerConfig:
    """Section `tokenizer` of a run's settings."""

    # Byte-level BPE of GPT-2, which ships with this package.
    tokenizer_name: str = "gpt2"
    # Each document is followed by <|endoftext|>.
    add_special_tokens: bool = True

    def __post_init__(self) -> None:
        if self.tokenizer_name != "gpt2":
            raise ValueError(
                f"tokenizer.tokenizer_name is {self.tokenizer_name!r}; "
                "only 'gpt2' is known, the tokenizer that ships with velocity"
            )
        if not self.add_special_tokens:
            raise ValueError(
                "tokenizer.add_special_tokens is false; shards always end a document with "
                "<|endoftext|>, so set it to true or leave it out"
            )

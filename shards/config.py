"""The settings for what a run reads: sections `data` and `tokenizer`."""

from dataclasses import dataclass
from typing import Literal

from shards.screen.url import refuse_url

Verify = Literal["open", "first-read", "off"]


@dataclass(frozen=True)
class DataConfig:
    """Section `data` of a run's settings."""

    # Folder of the shards that `velocity prep --out` wrote.
    shards: str = "shards/"
    # Tokens that one sample feeds to the model; a window is one token longer.
    max_seq_length: int = 2048
    # Damage in the shards ends the run: "first-read" compares each MiB with its checksum the first
    # time it is read, beside training; "open" hashes all shards before the first step; "off" = only
    # ids outside the vocabulary are noticed.
    verify: Verify = "first-read"

    def __post_init__(self) -> None:
        refuse_url(self.shards)
        if self.max_seq_length < 1:
            raise ValueError(
                f"data.max_seq_length is {self.max_seq_length}; expected at least 1 token"
            )

    @property
    def checks_first_reads(self) -> bool:
        """Whether each MiB is compared with its checksum the first time it is read."""
        return self.verify == "first-read"


@dataclass(frozen=True)
class TokenizerConfig:
    """Section `tokenizer` of a run's settings."""

    # The original's name for its tokenizer. A run takes that of its set, which `velocity prep
    # --tokenizer` chose.
    tokenizer_name: str = "gpt2"
    # End each document with the end-of-document token; must be true.
    add_special_tokens: bool = True

    def __post_init__(self) -> None:
        if self.tokenizer_name != "gpt2":
            raise ValueError(
                f"tokenizer.tokenizer_name is {self.tokenizer_name!r}; leave it out: a run takes "
                "its set's tokenizer, which velocity prep --tokenizer chooses"
            )
        if not self.add_special_tokens:
            raise ValueError(
                "tokenizer.add_special_tokens is false; shards always end a document with its "
                "end token, so set it to true or leave it out"
            )

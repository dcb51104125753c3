"""A tokenizer of the Hugging Face Hub: which one was asked for, and the commit it is pinned to."""

from dataclasses import dataclass


@dataclass(frozen=True)
class HubTokenizer:
    """A repository with a tokenizer.json, as asked for and as it was found at one commit."""

    repo: str
    requested_revision: str | None
    revision: str  # the commit, 40 hex digits
    end_token: str | None  # the eos_token of its tokenizer_config.json

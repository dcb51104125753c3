"""The options of `velocity shards import`, each with its help and default."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from prep.checks import refuse_empty
from prep.policy import BeginOfDocument, EndOfDocument, Policy, ShardTokens


@dataclass(frozen=True)
class ImportRequest:
    """What the user asked for."""

    out: Annotated[Path, typer.Option(help="Folder for the shards.")]
    train: Annotated[
        tuple[str, ...],
        typer.Argument(metavar="FILE", help="Token files for train, in order."),
    ] = ()
    validation: Annotated[
        tuple[str, ...],
        typer.Option(help="Token file for validation. May be given several times."),
    ] = ()
    format: Annotated[
        str, typer.Option(help="nanogpt, llmc or megatron; auto looks at each file.")
    ] = "auto"
    # Of the documents in `train`.
    validation_fraction: Annotated[
        str, typer.Option(help="Fraction of documents that goes to validation, by their hash.")
    ] = "0"
    shard_tokens: ShardTokens = Policy.shard_tokens
    add_end_of_text: Annotated[
        bool,
        typer.Option(
            "--add-end-of-text",
            help="If a nanogpt file does not end in the end-of-document token, add it.",
        ),
    ] = False

    tokenizer: Annotated[
        str,
        typer.Option(
            help="What made the ids: gpt2, a tokenizer.json, a folder that has one, or a "
            "repository of the Hub."
        ),
    ] = "gpt2"
    end_of_document: EndOfDocument = None
    begin_of_document: BeginOfDocument = None

    def __post_init__(self) -> None:
        refuse_empty("FILE", self.train)
        refuse_empty("--validation", self.validation)
        refuse_empty("--tokenizer", [self.tokenizer])

    @property
    def policy(self) -> Policy:
        """The options shared with prep; ValueError if one is out of range."""
        return Policy(validation_fraction=self.validation_fraction, shard_tokens=self.shard_tokens)

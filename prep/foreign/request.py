"""What `velocity shards import` is asked for: its options, each with its help and default."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from prep.request import Policy


@dataclass(frozen=True)
class ImportRequest:
    """What the user asked for."""

    out: Annotated[Path, typer.Option(help="The folder for the shards.")]
    train: Annotated[
        tuple[str, ...],
        typer.Argument(metavar="FILE", help="Token files, in order; these are for train."),
    ] = ()
    validation: Annotated[
        tuple[str, ...],
        typer.Option(help="A token file for validation. May be given several times."),
    ] = ()
    format: Annotated[
        str, typer.Option(help="nanogpt, llmc, megatron; auto looks at each file.")
    ] = "auto"
    # Of the documents of `train`.
    validation_fraction: Annotated[
        str, typer.Option(help="Share of the documents that goes to validation, by their hash.")
    ] = "0"
    shard_tokens: Annotated[
        int, typer.Option(help="Most tokens of a shard; a longer document stays whole.")
    ] = 1 << 28
    add_end_of_text: Annotated[
        bool,
        typer.Option(
            "--add-end-of-text", help="A nanogpt file may end without <|endoftext|>; put one there."
        ),
    ] = False

    @property
    def policy(self) -> Policy:
        """The options that prep has as well; ValueError where one is out of range."""
        return Policy(validation_fraction=self.validation_fraction, shard_tokens=self.shard_tokens)

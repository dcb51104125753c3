"""`velocity shards import`: its options, and what becomes of them."""

from pathlib import Path
from typing import Annotated

import typer

from shards.screen import say


def import_shards(
    out: Annotated[Path, typer.Option(help="The folder for the shards.")],
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE", help="Token files, in order; these are for train."),
    ] = None,
    validation: Annotated[
        list[str] | None,
        typer.Option(help="A token file for validation. May be given several times."),
    ] = None,
    format: Annotated[
        str, typer.Option(help="nanogpt, llmc, megatron; auto looks at each file.")
    ] = "auto",
    validation_fraction: Annotated[
        str, typer.Option(help="Share of the documents that goes to validation, by their hash.")
    ] = "0",
    shard_tokens: Annotated[
        int, typer.Option(help="Most tokens of a shard; a longer document stays whole.")
    ] = 1 << 28,
    add_end_of_text: Annotated[
        bool,
        typer.Option(
            "--add-end-of-text", help="A nanogpt file may end without <|endoftext|>; put one there."
        ),
    ] = False,
) -> None:
    """Make a set of GPT-2 tokens from nanoGPT, llm.c or Megatron."""
    from prep.foreign.run import ImportRequest, import_tokens

    request = ImportRequest(
        out=out,
        train=tuple(files or ()),
        validation=tuple(validation or ()),
        format=format,
        validation_fraction=validation_fraction,
        shard_tokens=shard_tokens,
        add_end_of_text=add_end_of_text,
    )
    import_tokens(request, say)

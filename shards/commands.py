"""`velocity shards info`, `verify`, `show`: the commands that look at a set, parsed and called."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Look at shards.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def info(folder: Annotated[Path, typer.Argument()] = Path("shards")) -> None:
    """What a set of shards holds."""
    from shards.format import read_manifest
    from shards.show import describe_set

    for line in describe_set(read_manifest(folder)):
        typer.echo(line)


@app.command()
def verify(folder: Annotated[Path, typer.Argument()] = Path("shards")) -> None:
    """Read everything again; name each damaged file and where it is damaged."""
    from shards.verify import verify_shards

    num_files, num_damaged = 0, 0
    for name, fault in verify_shards(folder):
        num_files += 1
        num_damaged += fault is not None
        if fault is not None:
            typer.echo(f"{folder / name}: {fault}")
    if num_damaged:
        raise ValueError(
            f"{folder}: {num_damaged} of {num_files} files are damaged; restore them from a copy, "
            "or run the same prep command into a new folder"
        )
    typer.echo(f"{folder}: {num_files} files are whole")


@app.command()
def show(
    folder: Annotated[Path, typer.Argument()] = Path("shards"),
    document: Annotated[int | None, typer.Option(help="By its number in the split.")] = None,
    url: Annotated[str | None, typer.Option(help="By its URL.")] = None,
    doc_hash: Annotated[str | None, typer.Option(help="By its hash.")] = None,
    start: Annotated[
        int | None, typer.Option(help="Tokens instead: from this place in the split on.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="With --start: how many.")] = 256,
    split: Annotated[str, typer.Option(help="train or validation.")] = "train",
) -> None:
    """Print a document, or a window of tokens, as text."""
    from shards.reader import open_shards
    from shards.show import choose_documents, decode_document, decode_tokens

    shards = open_shards(folder)
    if start is not None:
        typer.echo(decode_tokens(shards, split, start, tokens))
        return
    for found_split, found in choose_documents(shards, split, document, url, doc_hash):
        typer.echo(f"{found_split}, {found}", err=True)
        typer.echo(decode_document(shards, found_split, found))

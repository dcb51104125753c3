"""The `velocity merge` command, and how commands fetch models of the Hub."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from shards.screen.lines import say
from shards.screen.names import quote
from shards.screen.url import is_hub_model, read_checkpoint

Dtype = Literal["fp32", "bf16", "fp16"]


def merge(
    adapter: Annotated[
        Path,
        typer.Argument(
            parser=read_checkpoint,
            metavar="adapter",
            help="An adapter's folder, a run's with such (the newest), or hf://user/name.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="out", help="A new folder.")],
    base: Annotated[
        Path | None,
        typer.Option(
            parser=read_checkpoint,
            metavar="PATH",
            help="The model that the adapter is for: a checkpoint, or hf://user/name. Default: the "
            "one that it was trained on, if it is still there.",
        ),
    ] = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Of the merged weights. Default: as the base's are stored.")
    ] = None,
) -> None:
    """Merge an adapter (LoRA, DoRA) into its model: a plain folder, compared before it counts."""
    from model.export.merge import merge as merge_folder

    merged = merge_folder(fetch(adapter), out, base and fetch(base), dtype, say)
    say(merged)
    say(f"{out}: merged; try it with: velocity sample --ckpt {quote(out)}")


def fetch(folder: Path) -> Path:
    """A folder on this machine; that of a model of the Hub is fetched first."""
    if not is_hub_model(folder):
        return folder
    from prep.remote.hub_model import fetch_model

    return fetch_model(folder, say)

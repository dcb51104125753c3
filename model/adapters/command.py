"""The `velocity merge` command."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from model.checkpoints.hub import fetch
from shards.screen.lines import say
from shards.screen.names import quote
from shards.screen.url import read_checkpoint

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

    merged = merge_folder(fetch(adapter, say), out, base and fetch(base, say), dtype, say)
    say(merged)
    say(f"{out}: merged; try it with: velocity sample --ckpt {quote(out)}")

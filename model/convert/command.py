"""The `velocity convert` command."""

from pathlib import Path
from typing import Annotated

import typer

from model.checkpoints.hub import fetch
from model.convert.options import CONVERT_HELP, Longer
from shards.entry.options import takes_options
from shards.screen.lines import say
from shards.screen.names import quote
from shards.screen.url import read_checkpoint


@takes_options
def convert(
    ckpt: Annotated[
        Path, typer.Argument(parser=read_checkpoint, metavar="ckpt", help=CONVERT_HELP)
    ],
    out: Annotated[Path, typer.Argument(metavar="out", help="A new folder.")],
    longer: Longer,
) -> None:
    """Convert an older checkpoint to today's format, or any to a longer context; weights stay."""
    from model.convert.run import run_convert
    from prep.tokenizer.gpt2 import build_gpt2_json

    done = run_convert(fetch(ckpt, say), out, longer, build_gpt2_json())
    say(f"{out}: {done}; try it with: velocity sample --ckpt {quote(out)}")

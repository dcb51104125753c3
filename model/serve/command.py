"""The `velocity serve` command."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from model.checkpoints.hub import fetch
from model.sample.options import CKPT_HELP, Loading
from model.serve.options import Serving
from shards.entry.options import takes_options
from shards.screen.lines import say
from shards.screen.url import read_checkpoint


@takes_options
def serve(
    ckpt: Annotated[
        list[Path],
        typer.Option(
            parser=read_checkpoint,
            metavar="PATH",
            help=f"{CKPT_HELP} May be given several times.",
        ),
    ],
    limits: Serving,
    loading: Loading,
    shards: Annotated[
        Path | None,
        typer.Option(help="The training set, indexed: the page and /v1/trace find texts in it."),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="With --shards: the run's checkpoints, for its steps."),
    ] = None,
) -> None:
    """Serve checkpoints over HTTP, with OpenAI's API and a page for people."""
    try:
        from model.serve.server import serve as serve_models
    except ModuleNotFoundError as error:
        raise ValueError(
            f"velocity serve needs {error.name}; install it with: pip install 'velocitylm[serve]'"
        ) from None
    if run is not None and shards is None:
        raise ValueError("--run is for --shards; give both, or neither")
    trace = None if shards is None else open_trace(shards, run)
    serve_models([fetch(path, say) for path in ckpt], limits, loading.make_load(), trace)


def open_trace(shards: Path, run: Path | None) -> Callable[[str, int, int], dict[str, Any]]:
    """What says where characters of a text are in a set, and at which steps a run saw them."""
    from model.serve.house import TextRefused
    from shards.index.passages import TextTooLong, Wish
    from shards.reader import open_shards
    from train.tracing.passages import open_passages

    passages, wish = open_passages(open_shards(shards), run, say), Wish()

    def trace(text: str, start: int, stop: int) -> dict[str, Any]:
        try:
            return passages.answer(text, wish, start, stop)
        except TextTooLong as error:
            raise TextRefused(str(error)) from None

    return trace

"""`velocity prep`: what its options ask for, and what is then done."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from prep.request import Request
from shards.options import takes_options
from shards.part import parse_part
from shards.screen import say


@takes_options
def prep(
    request: Request,
    part: Annotated[
        str | None,
        typer.Option(help="Do only part i of n, as 0/4, beside processes that do the others."),
    ] = None,
    finish: Annotated[
        bool, typer.Option("--finish", help="Check what the parts did, and make it one set.")
    ] = False,
    append: Annotated[
        bool,
        typer.Option("--append", help="Add these sources to the finished set in --out."),
    ] = False,
    staging: Annotated[
        Path | None,
        typer.Option(
            help="Where the set is made if --out is a URL; default: a folder of its last name here."
        ),
    ] = None,
    compress: Annotated[
        bool, typer.Option("--compress", help="If --out is a URL: store .bin files as .bin.zst.")
    ] = False,
) -> None:
    """Turn documents into token shards, once, offline. The same command again goes on."""
    from prep.text.filters import make_filter
    from prep.upload import split_out
    from shards.disk.url import show_url

    url, out = split_out(request.out, staging, compress)
    request = replace(request, out=out, url=show_url(url) if url else None)
    request = choose_task(request, part, finish, append)
    make_filter(request.policy)  # So that a bad expression is refused before a folder is made.
    try:
        num_tokens = work(request, url, compress)
    except KeyboardInterrupt:
        say(f"stopped; what is committed in {out} stays, and the same command goes on from there")
        raise typer.Exit(130) from None
    if num_tokens:
        option = "" if out == Path("shards") else f" data.shards={out}"
        say(f"next: torchrun --nproc_per_node 1 -m train{option}")


def choose_task(request: Request, part: str | None, finish: bool, append: bool) -> Request:
    """The request with the task that --part, --finish or --append names; the whole set if none."""
    if part:
        request = replace(request, task=parse_part(part))
    if finish and part:
        raise ValueError("--finish comes when all parts are done; run it without --part")
    if finish:
        request = replace(request, task="finish")
    if append and (finish or part):
        raise ValueError("--append is no work for --part and --finish; --engine ray shares it")
    return replace(request, task="append") if append else request


def work(request: Request, url: str | None, compress: bool) -> int:
    """Do what was asked for, and send it to the URL, if any.

    Returns the train tokens that are there; 0 where the set is not finished.
    """
    from prep.append import append_sources
    from prep.gather import finish_parts
    from prep.run import prepare
    from prep.run_part import prepare_part
    from prep.upload import sending

    with sending(url, request, say, compress):
        match request.task:
            case "whole":
                manifest = prepare(request, say)
            case "append":
                manifest = append_sources(request, say)
            case "finish":
                manifest = finish_parts(request, say)
            case _:
                prepare_part(request, say)
                return 0
    return manifest.num_tokens("train")

"""The `velocity prep` and `velocity quickstart` commands."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prep.request import Request
from shards.disk.part import parse_part
from shards.entry.options import Overrides, takes_options
from shards.screen.lines import say
from shards.screen.names import quote

if TYPE_CHECKING:
    from shards.format import Manifest


@takes_options
def prep(
    request: Request,
    part: Annotated[
        str | None,
        typer.Option(help="Do only part i of n, e.g. 0/4, while other processes do the rest."),
    ] = None,
    finish: Annotated[
        bool, typer.Option("--finish", help="Check what the parts made, and join it into one set.")
    ] = False,
    append: Annotated[
        bool,
        typer.Option("--append", help="Add these sources to the finished set in --out."),
    ] = False,
    staging: Annotated[
        Path | None,
        typer.Option(
            help="If --out is a URL: local folder to make the set in; default: the URL's last part."
        ),
    ] = None,
    compress: Annotated[
        bool, typer.Option("--compress", help="If --out is a URL: upload .bin files as .bin.zst.")
    ] = False,
) -> None:
    """Turn documents into token shards, once, offline. Run the same command again to resume."""
    from prep.remote.places import check_inputs
    from prep.text.contained import pin_contained
    from prep.text.filters import make_filter
    from prep.tokenizer.choose import find_repository
    from prep.upload import split_out
    from shards.screen.url import show_url

    url, out = split_out(request.out, staging, compress)
    request = replace(request, out=out, url=show_url(url) if url else None)
    request = choose_task(request, part, finish, append)
    # All refuse what is wrong before a folder is made.
    make_filter(request.policy)
    request = replace(request, policy=pin_contained(request.policy))
    check_inputs(request.inputs)
    if request.tokenizer is not None:
        find_repository(request.tokenizer)
    try:
        manifest = work(request, url, compress)
    except KeyboardInterrupt:
        say(f"stopped; what is committed in {out} stays, and the same command resumes from there")
        raise typer.Exit(130) from None
    if manifest and (num_tokens := manifest.num_tokens("train")):
        from train.start.choose import suggest_command

        if manifest.chat is not None:
            say(f"next: {suggest_tuning(out, manifest.chat['kind'])}")
            return
        command = suggest_command(out, num_tokens, manifest.vocab_size, manifest.row_tokens)
        say(f"next: {command}")


def suggest_tuning(out: Path, kind: str) -> str:
    """The command that trains a model on chats."""
    from shards.schema import PREFERENCES

    name = "dpo" if kind == PREFERENCES else "sft"
    return (
        f"torchrun --nproc_per_node 1 -m train --config {name} data.shards={quote(out)} "
        "model.start=CKPT"
    )


def choose_task(request: Request, part: str | None, finish: bool, append: bool) -> Request:
    """The request with the task that --part, --finish or --append names, else for the whole set."""
    if part:
        request = replace(request, task=parse_part(part))
    if finish and part:
        raise ValueError("--finish is for when all parts are done; run it without --part")
    if finish:
        request = replace(request, task="finish")
    if append and (finish or part):
        raise ValueError("--append cannot be combined with --part or --finish; use --engine ray")
    return replace(request, task="append") if append else request


def work(request: Request, url: str | None, compress: bool) -> "Manifest | None":
    """Do what was asked for, and send it to the URL, if any; None if the set is not finished."""
    from prep.append import append_sources
    from prep.gather import finish_parts
    from prep.run import prepare
    from prep.run_part import prepare_part
    from prep.upload import sending

    with sending(url, request, say, compress):
        match request.task:
            case "whole":
                return prepare(request, say)
            case "append":
                return append_sources(request, say)
            case "finish":
                return finish_parts(request, say)
            case _:
                prepare_part(request, say)
                return None


def quickstart(
    out: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("quickstart"),
    chat: Annotated[bool, typer.Option("--chat", help="Then teach it to answer.")] = False,
    overrides: Overrides = None,
) -> None:
    """Prep, train and sample in minutes, on text that is already on this machine."""
    from prep.chat_quickstart import run_chat_quickstart
    from prep.quickstart import run_quickstart

    run_quickstart(out, overrides or ())
    if chat:
        run_chat_quickstart(out)

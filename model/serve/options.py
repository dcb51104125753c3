"""The options of `velocity serve`. Imports no torch."""

import os
from dataclasses import dataclass
from typing import Annotated

import typer

KEY_VARIABLE = "VELOCITY_API_KEY"


@dataclass(frozen=True)
class Serving:
    """Where the server listens, who may ask it, and how much at a time."""

    host: Annotated[
        str,
        typer.Option(help="The address to listen at; 0.0.0.0 lets other machines in."),
    ] = "127.0.0.1"
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8000
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar=KEY_VARIABLE,
            help="Ask clients for this key. Others on the machine see the words of a command; they "
            "do not see the variable.",
        ),
    ] = None
    allow_host: Annotated[
        tuple[str, ...],
        typer.Option(
            help="A name that clients may call the server by, beside localhost and addresses. May "
            "be given several times."
        ),
    ] = ()
    allow_origin: Annotated[
        tuple[str, ...],
        typer.Option(
            help="A site, such as https://example.com, whose pages may use the server. May be "
            "given several times."
        ),
    ] = ()
    max_texts: Annotated[
        int, typer.Option(help="Texts written at a time; each takes its share of memory.", min=1)
    ] = 16
    max_waiting: Annotated[
        int, typer.Option(help="Texts that may wait for that; others are told to.", min=0)
    ] = 128
    max_body_mb: Annotated[
        int, typer.Option(help="The largest request, in MB.", min=1, max=1000)
    ] = 2
    max_seconds: Annotated[
        float, typer.Option(help="A request's texts end after so many seconds.", min=1)
    ] = 600.0
    stop_seconds: Annotated[
        float,
        typer.Option(help="How long texts may go on once the server is to end.", min=0),
    ] = 5.0

    def __post_init__(self) -> None:
        # An option's variable that is empty is as good as none for click.
        key = os.environ.get(KEY_VARIABLE) if self.api_key is None else self.api_key
        if key is not None and not key.strip():
            raise ValueError("the API key is empty, and would let everybody in; choose one")

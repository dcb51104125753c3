"""The options of `velocity sample` that say which prompts are read and how texts are written."""

from dataclasses import dataclass
from typing import Annotated

import typer

from model.decode.settings import Settings


@dataclass(frozen=True)
class Output:
    """What is written, and how."""

    stream: Annotated[bool, typer.Option(help="Show a single text as it is generated.")] = True
    all: Annotated[
        bool,
        typer.Option("--all", help="Write with every checkpoint of a run, each under its step."),
    ] = False
    continuation: Annotated[
        str | None,
        typer.Option(help="With --all: also how likely this text is after each prompt."),
    ] = None
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, a line for each text.")] = (
        False
    )

    def check(self, settings: Settings) -> None:
        """ValueError for options that go with another one which is not there."""
        if self.continuation is not None and not self.all:
            raise ValueError("--continuation goes with --all; give both or neither")
        if settings.logprobs is not None and not self.as_json:
            raise ValueError("--logprobs goes with --json; give both or neither")


@dataclass(frozen=True)
class Prompts:
    """Where prompts come from: the command line, a whole file, or the lines of a file."""

    prompt: Annotated[
        tuple[str, ...],
        typer.Option(
            help="May be given several times. Without one, a terminal asks for it; elsewhere, the "
            "text starts a new document."
        ),
    ] = ()
    prompt_file: Annotated[
        str | None, typer.Option(help="A file holding one prompt; - for standard input.")
    ] = None
    prompt_lines: Annotated[
        str | None, typer.Option(help="A file with one prompt per line; - for standard input.")
    ] = None

    @property
    def is_empty(self) -> bool:
        """Whether no prompt was given, not even an empty one."""
        return not self.prompt and self.prompt_file is None and self.prompt_lines is None

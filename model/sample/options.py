"""Options of the commands that take a checkpoint, and those of `velocity sample`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from model.config import Kept
from model.decode.settings import Settings
from shards.screen.url import read_checkpoint

CKPT_HELP = (
    "A checkpoint, a folder of them (uses the newest complete one), or hf://user/name[@revision]."
)
CkptOption = Annotated[Path, typer.Option(parser=read_checkpoint, metavar="PATH", help=CKPT_HELP)]
DeviceOption = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1 or mps. Default: a GPU if there is one.")
]
DtypeOption = Annotated[
    Kept | None,
    typer.Option(
        help="What weights are rounded to: less to read is less time. Default: as they are."
    ),
]
BaseOption = Annotated[
    Path | None,
    typer.Option(
        parser=read_checkpoint,
        metavar="PATH",
        help="The model that --ckpt, an adapter, is for: a checkpoint, or hf://user/name. Default: "
        "the one that it was trained on, if it is still there.",
    ),
]


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

"""Options of the commands that take a checkpoint, and those of `velocity sample` and `chat`."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from model.config import Kept
from model.decode.settings import Settings
from shards.entry.options import PATH
from shards.screen.url import read_checkpoint

if TYPE_CHECKING:
    from model.decode.generator import Generator

CKPT_HELP = (
    "A checkpoint, a folder of them (uses the newest complete one), or hf://user/name[@revision]."
)
CkptOption = Annotated[Path, typer.Option(parser=read_checkpoint, metavar="PATH", help=CKPT_HELP)]
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
class Loading:
    """Where a model computes, how its weights are rounded, and what its adapter is for."""

    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 or mps. Default: a GPU if there is one.")
    ] = None
    dtype: Annotated[
        Kept | None,
        typer.Option(
            help="What weights are rounded to: less to read is less time. Default: as they are."
        ),
    ] = None
    base: BaseOption = None

    def make_load(self) -> "partial[Generator]":
        """What loads a checkpoint as these options say."""
        from model.generate import load_generator
        from prep.tokenizer.gpt2 import build_gpt2_json

        # Only the original VelocityLM's checkpoints lack a tokenizer, which is GPT-2's.
        tokenizer_json = build_gpt2_json()
        return partial(
            load_generator,
            device=self.device,
            tokenizer_json=tokenizer_json,
            dtype=self.dtype,
            base=self.base,
        )


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


@dataclass(frozen=True)
class Chat:
    """How a chat begins, and how its answers are written."""

    system: Annotated[
        str | None, typer.Option(help="The system prompt: what the model is told before a chat.")
    ] = None
    system_file: Annotated[
        str | None,
        typer.Option(metavar=PATH, help="A file with the system prompt, instead of --system."),
    ] = None
    template: Annotated[
        str | None,
        typer.Option(
            help="For a folder without a chat template: a file with the one that it was trained "
            "with, or the name of one that comes with velocity, such as chatml."
        ),
    ] = None
    stream: Annotated[bool, typer.Option(help="Show an answer as it is generated.")] = True
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Read messages from standard input, and print JSON, a line for each."
        ),
    ] = False

    def check(self, settings: Settings) -> None:
        """ValueError for options that contradict each other, or that a chat does not have."""
        if self.system is not None and self.system_file is not None:
            raise ValueError("--system and --system-file: give one of them")
        if settings.num_return_sequences > 1:
            raise ValueError(
                f"--num-samples is {settings.num_return_sequences}; a chat has one answer to each "
                "message; leave it out"
            )
        if settings.logprobs is not None:
            raise ValueError("--logprobs is for velocity sample --json; leave it out")
        for name in ("max_length", "min_length"):
            if getattr(settings, name):
                option = f"--{name.replace('_', '-')}"
                raise ValueError(f"{option} counts the whole chat; give --{name[:3]}-new-tokens")

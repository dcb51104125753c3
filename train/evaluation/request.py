"""The options of `velocity eval`, each with its help, default and check. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from shards.entry.options import PATH


@dataclass(frozen=True)
class Measured:
    """What is predicted, and in which windows."""

    shards: Annotated[
        Path | None, typer.Option(help="A set, made with the checkpoint's tokenizer.")
    ] = None
    split: Annotated[str, typer.Option(help="With --shards: train or validation.")] = "validation"
    text: Annotated[
        tuple[str, ...],
        typer.Option(
            metavar=PATH, help="A file of text, each a document. May be given several times."
        ),
    ] = ()
    windows: Annotated[
        int | None,
        typer.Option(help="With --shards: only so many, from the split's first on.", min=1),
    ] = None
    length: Annotated[
        int | None,
        typer.Option(
            help="Tokens that a window predicts. Default: as in the run, or the model's context.",
            min=1,
        ),
    ] = None
    stride: Annotated[
        int | None,
        typer.Option(
            help="Tokens from one window to the next; below --length, each token is predicted "
            "once, with more before it. Default: the length.",
            min=1,
        ),
    ] = None
    batch_size: Annotated[
        int, typer.Option(help="Windows, or choices, computed together.", min=1)
    ] = 8

    def __post_init__(self) -> None:
        if self.shards is not None and self.text:
            raise ValueError("--shards and --text: give one of them, and run eval again for both")
        if self.windows is not None and self.shards is None:
            raise ValueError("--windows is for --shards; leave it out")

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be predicted."""
        return self.shards is None and not self.text


@dataclass(frozen=True)
class Solved:
    """Which tasks are to be solved, and where their items may have been seen."""

    task: Annotated[
        tuple[str, ...],
        typer.Option(
            metavar=PATH,
            help="A file of JSON lines: questions with choices, or completions. May be given "
            "several times.",
        ),
    ] = ()
    delimiter: Annotated[
        str, typer.Option(help="With --task: what stands between a context and a choice.")
    ] = " "
    contamination: Annotated[
        Path | None,
        typer.Option(help="With --task: the training set, indexed; which items are in it?"),
    ] = None
    ngram: Annotated[
        int,
        typer.Option(
            help="With --contamination: an item is in the set if so many of its tokens are in a "
            "row.",
            min=1,
        ),
    ] = 13

    def __post_init__(self) -> None:
        if self.contamination is not None and not self.task:
            raise ValueError("--contamination is for --task; give both, or neither")


@dataclass(frozen=True)
class Request:
    """What `velocity eval` is asked for."""

    measured: Measured
    solved: Solved
    all: Annotated[
        bool, typer.Option("--all", help="Every complete checkpoint in the folder, oldest first.")
    ] = False
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, a line for each checkpoint.")
    ] = False

    def __post_init__(self) -> None:
        if self.measured.is_empty and not self.solved.task:
            raise ValueError("what should be predicted? give --shards, --text, or --task")

"""What to generate: how far, how many texts, and how tokens are chosen. Imports no torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import typer


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Raises ValueError, naming the setting, for a value without meaning."""

    # False always takes the likeliest token; so does a temperature of 0.
    do_sample: bool = True
    # Divides the logits: below 1 makes the likely likelier.
    temperature: Annotated[
        float,
        typer.Option(help="0 takes the likeliest token each time. [0.8]", show_default=False),
    ] = 0.8
    # What ties with the last one stays too; None keeps all, as 0 does.
    top_k: Annotated[
        int | None,
        typer.Option(help="Only the k likeliest tokens; 0 = all. [50]", show_default=False),
    ] = 50
    # Until their probabilities reach this sum; None keeps all, as 1 does.
    top_p: Annotated[
        float | None,
        typer.Option(help="Only the likeliest that make up p; 1 = all. [0.9]", show_default=False),
    ] = 0.9
    min_p: Annotated[
        float,
        typer.Option(
            help="Only those at least p times as likely as the best. [0]", show_default=False
        ),
    ] = 0.0
    # Of the prompt and of the text so far (CTRL, Keskar et al. 2019): positive logits are divided
    # by it, negative ones multiplied.
    repetition_penalty: Annotated[
        float,
        typer.Option(
            help="Above 1: tokens that were there are less likely. [1]", show_default=False
        ),
    ] = 1.0

    def __post_init__(self) -> None:
        checks = {
            "temperature": (self.temperature >= 0, "from 0 (the likeliest token) up"),
            "top_k": (self.top_k is None or self.top_k >= 0, "from 0 (off) up"),
            "top_p": (self.top_p is None or 0 < self.top_p <= 1, "above 0, up to 1 (off)"),
            "min_p": (0 <= self.min_p <= 1, "from 0 (off) to 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0; 1 is off"),
        }
        for name, (is_valid, expected) in checks.items():
            value = getattr(self, name)
            if not is_valid or value == math.inf:
                raise ValueError(f"{name} is {value}; expected a number {expected}")

    @property
    def is_greedy(self) -> bool:
        """Whether nothing is drawn: the likeliest token is always taken."""
        return not self.do_sample or self.temperature == 0


@dataclass(frozen=True)
class Settings(Sampling):
    """What to generate: how far, how many texts, and how tokens are chosen."""

    max_length: Annotated[
        int,
        typer.Option(help="Tokens of a text, its prompt's included. [150]", show_default=False),
    ] = 150
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Tokens behind the prompt; instead of --max-length.")
    ] = None
    num_return_sequences: Annotated[
        int,
        typer.Option("--num-samples", help="Texts for each prompt. [1]", show_default=False),
    ] = 1
    stop: Annotated[
        str | Sequence[str] | None,
        typer.Option(help="End before this text. May be given several times."),
    ] = None
    # None gives new ones each time.
    seed: Annotated[int | None, typer.Option(help="Equal seeds give equal texts.")] = None
    # Texts that grow together. Fewer take less memory; what they say stays the same.
    batch_size: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_length", "max_new_tokens", "num_return_sequences", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; expected 1 or more")
        if "" in self.stops:
            raise ValueError("a stop string is empty and would end every text; leave it out")

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, of which there may be none."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


@dataclass(frozen=True)
class Prompts:
    """Where prompts come from: the command line, a file, or the lines of one."""

    prompt: Annotated[
        tuple[str, ...],
        typer.Option(help="May be given several times. None: the beginning of a document."),
    ] = ()
    prompt_file: Annotated[
        str | None, typer.Option(help="A file that is one prompt; - for standard input.")
    ] = None
    prompt_lines: Annotated[
        str | None, typer.Option(help="A file with a prompt on each line; - for standard input.")
    ] = None

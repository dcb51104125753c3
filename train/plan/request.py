"""The options of `velocity plan`, each with its help, default and check."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

# More GPUs than any run has.
MAX_GPUS = 100_000
# The share of the GPUs' peak that is planned with.
DEFAULT_MFU = 0.4


@dataclass(frozen=True)
class Request:
    """What is asked; ValueError, naming the option, for numbers that make no sense."""

    config: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="Settings, as -m train takes them.")
    ] = None
    gpus: Annotated[int, typer.Option(help="Number of GPUs, on all machines together.")] = 1
    gpu: Annotated[str | None, typer.Option(help="Kind of GPU, such as 'A100 80GB'.")] = None
    gpu_memory: Annotated[
        float | None, typer.Option(metavar="GB", help="Memory of a GPU of another kind.")
    ] = None
    shards: Annotated[
        Path | None, typer.Option(help="The set: for epochs, and its tokenizer's size.")
    ] = None
    mfu: Annotated[
        float, typer.Option(help="Share of the GPUs' peak that the run reaches, up to 1.")
    ] = DEFAULT_MFU
    price: Annotated[float | None, typer.Option(help="Price of a GPU for an hour.")] = None
    contexts: Annotated[
        bool,
        typer.Option(
            "--contexts",
            help="Also compare contexts of 2,048 to 32,768 tokens; with --shards, by documents "
            "that are longer.",
        ),
    ] = False
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, on one line.")] = False

    def __post_init__(self) -> None:
        if not 1 <= self.gpus <= MAX_GPUS:
            raise ValueError(f"--gpus is {self.gpus!s:.60}; expected 1 to {MAX_GPUS:,}")
        if not 0 < self.mfu <= 1:
            raise ValueError(f"--mfu is {self.mfu:g}; expected a share above 0, up to 1: 0.4")
        if self.price is not None and not 0 <= self.price < 1e9:
            raise ValueError(f"--price is {self.price:g}; expected what a GPU costs for an hour")
        if self.gpu_memory is not None and not 0 < self.gpu_memory < 1e6:
            raise ValueError(f"--gpu-memory is {self.gpu_memory:g}; expected gigabytes: 80")
        memory = self.gpu_memory if self.gpu is None else self.gpu
        for option, is_given, gpu, needed in (
            ("--mfu", self.mfu != DEFAULT_MFU, self.gpu, "a kind of GPU"),
            ("--price", self.price is not None, self.gpu, "a kind of GPU"),
            ("--gpus", self.gpus != 1, memory, "a kind of GPU, or its memory"),
            ("--json", self.as_json, memory, "a kind of GPU, or its memory"),
        ):
            if is_given and gpu is None:
                raise ValueError(f"{option} needs {needed}: --gpu H200")

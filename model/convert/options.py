"""The options of `velocity convert`. Imports no torch."""

from dataclasses import dataclass
from typing import Annotated, Literal

import typer

# How a context is made longer; all but theta are words of model.rope_type.
Stretch = Literal["yarn", "theta", "llama3", "linear"]

CONVERT_HELP = (
    "A checkpoint of the original VelocityLM, or one of ours whose tokenizer keeps others from "
    "writing <|endoftext|>; with --context, any. May be hf://user/name."
)


@dataclass(frozen=True)
class Longer:
    """A longer context, if one is wanted; ValueError for options of one that is not."""

    context: Annotated[
        int | None,
        typer.Option(help="Write it with a context of so many tokens, to be trained further."),
    ] = None
    rope: Annotated[
        Stretch | None,
        typer.Option(
            help="With --context: how positions are fitted in. theta makes rope_theta larger, the "
            "others are rope types. Default: yarn, or theta if --theta is given.",
        ),
    ] = None
    theta: Annotated[
        float | None,
        typer.Option(
            help="With --rope theta: the new rope_theta. Default: the old one times "
            "s^(d / (d - 2)), for a context s times as long and heads of width d."
        ),
    ] = None

    def __post_init__(self) -> None:
        for option, value in (("--rope", self.rope), ("--theta", self.theta)):
            if self.context is None and value is not None:
                raise ValueError(f"{option} goes with --context; give both or neither")
        if self.theta is not None and self.way != "theta":
            raise ValueError(f"--theta goes with --rope theta, and not with --rope {self.rope}")

    @property
    def way(self) -> Stretch:
        """--rope, or what stands for it."""
        return self.rope or ("yarn" if self.theta is None else "theta")

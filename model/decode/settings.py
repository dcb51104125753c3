"""What to generate: how much, how many texts, and how tokens are chosen. Imports no torch."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

DEFAULT_MAX_LENGTH = 150
# Below this the likeliest token has all the probability there is, short of ties, and dividing the
# logits by it only risks an overflow.
MIN_TEMPERATURE = 1e-5
# Not valid in UTF-8; in arguments, Python uses them for bytes that are not UTF-8.
LONE_SURROGATES = re.compile("[\ud800-\udfff]")
ESCAPES = {"\\n": "\n", "\\t": "\t", "\\\\": "\\"}


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Raises ValueError, naming the setting, for an invalid value."""

    # False always takes the likeliest token, as does a temperature of 0 (or under 0.00001).
    do_sample: bool = True
    # Divides the logits; below 1, likely tokens become likelier still.
    temperature: Annotated[
        float,
        typer.Option(help="Randomness; 0 always takes the likeliest token."),
    ] = 0.8
    # Ties with the last one are kept too; None keeps all, as 0 does.
    top_k: Annotated[
        int | None,
        typer.Option(help="Choose among the k likeliest tokens; 0 = all."),
    ] = 50
    # Likeliest first, until their probabilities sum to this; None keeps all, as 1 does.
    top_p: Annotated[
        float | None,
        typer.Option(help="Choose among the likeliest tokens that sum to p; 1 = all."),
    ] = 0.9
    min_p: Annotated[
        float,
        typer.Option(
            help="Choose among tokens at least p times as likely as the likeliest; 0 = all."
        ),
    ] = 0.0
    # For tokens in the prompt and the text so far (CTRL, Keskar et al. 2019): positive logits are
    # divided by it, negative ones multiplied.
    repetition_penalty: Annotated[
        float,
        typer.Option(help="Above 1, tokens already in the text become less likely."),
    ] = 1.0

    def __post_init__(self) -> None:
        checks = {
            "temperature": (self.temperature >= 0, "of at least 0; 0 takes the likeliest token"),
            "top_k": (self.top_k is None or self.top_k >= 0, "of at least 0; 0 is off"),
            "top_p": (self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1; 1 is off"),
            "min_p": (0 <= self.min_p <= 1, "from 0 to 1; 0 is off"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0; 1 is off"),
        }
        for name, (is_valid, expected) in checks.items():
            value = getattr(self, name)
            if not is_valid or value == math.inf:
                raise ValueError(f"{name} is {value}; expected a number {expected}")

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken, instead of drawing one."""
        return not self.do_sample or self.temperature < MIN_TEMPERATURE


@dataclass(frozen=True)
class Settings(Sampling):
    """What to generate: how much, how many texts, and how tokens are chosen."""

    # With neither of the two, DEFAULT_MAX_LENGTH.
    max_length: Annotated[
        int | None,
        typer.Option(
            help=f"Maximum tokens in a text, its prompt included. Default: {DEFAULT_MAX_LENGTH}."
        ),
    ] = None
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Maximum tokens after the prompt, instead of --max-length.")
    ] = None
    num_return_sequences: Annotated[
        int,
        typer.Option("--num-samples", help="Texts per prompt."),
    ] = 1
    stop: Annotated[
        str | Sequence[str] | None,
        typer.Option(
            help="Stop before this text. May be given several times. \\n is a line's end, \\t a "
            "tab, \\\\ a backslash."
        ),
    ] = None
    # None gives different texts each time.
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same texts.")] = None
    # Texts generated together. Fewer take less memory; the texts stay the same.
    batch_size: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_length", "max_new_tokens", "num_return_sequences", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; expected 1 or more")
        if self.max_length is not None and self.max_new_tokens is not None:
            raise ValueError(
                f"max_length is {self.max_length} and max_new_tokens is {self.max_new_tokens}; "
                "expected only one: the first counts the prompt's tokens too"
            )
        if any(LONE_SURROGATES.search(stop) for stop in self.stops):
            raise ValueError("a stop string is not UTF-8 and would never be found; leave it out")
        if "" in self.stops:
            raise ValueError("a stop string is empty and would end every text; leave it out")

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings as a tuple, which may be empty."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


def read_stop(typed: str) -> str:
    r"""A stop string as it is meant by one who cannot type a line's end or a tab.

    >>> read_stop(r"\n\nUser:"), read_stop(r"\\nabla \x")
    ('\n\nUser:', '\\nabla \\x')
    """
    return re.sub(r"\\[nt\\]", lambda found: ESCAPES[found[0]], typed)


@dataclass(frozen=True)
class Prompts:
    """Where prompts come from: the command line, a whole file, or the lines of a file."""

    prompt: Annotated[
        tuple[str, ...],
        typer.Option(
            help="May be given several times. Without one, the text starts a new document."
        ),
    ] = ()
    prompt_file: Annotated[
        str | None, typer.Option(help="A file holding one prompt; - for standard input.")
    ] = None
    prompt_lines: Annotated[
        str | None, typer.Option(help="A file with one prompt per line; - for standard input.")
    ] = None

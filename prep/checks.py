"""Checks of options: numbers within bounds, decimal numbers as people type them, no empty names."""

import re
from collections.abc import Iterable
from dataclasses import fields
from fractions import Fraction
from typing import Any

# Larger than any count of tokens, bytes or characters; sums of two such still fit into 64 bits.
MAX_NUMBER = 1 << 62
MAX_WORKERS = 1 << 16
# A decimal number as people type one. An exact fraction of 1e-999999999 would take all memory.
MAX_DIGITS = 400
EXPONENT = re.compile(r"[eE][-+]?[\d_]{4,}")


def refuse_empty(option: str, values: Iterable[str]) -> None:
    """ValueError if a value is empty: of a path, that would be the current folder."""
    if any(not value.strip() for value in values):
        raise ValueError(f"{option} is empty; name what is meant, or leave the option out")


def name_option(field: str) -> str:
    """The option that sets a field, as typed on the command line.

    >>> name_option("max_tokens"), name_option("inputs")
    ('--max-tokens', '--input')
    """
    return "--input" if field == "inputs" else f"--{field.replace('_', '-')}"


def refuse_unused(options: Any, names: Iterable[str], used_by: str) -> None:
    """ValueError if an option of a dataclass is not at its default, though nothing uses it."""
    usual = {entry.name: entry.default for entry in fields(options)}
    for name in names:
        if getattr(options, name) != usual[name]:
            raise ValueError(f"{name_option(name)} is for {used_by}; give both or neither")


def parse_fraction(text: str | None, option: str = "--sample", example: str = "0.01") -> Fraction:
    """The fraction that an option gives; 1 if it is not given.

    >>> parse_fraction("0.01")
    Fraction(1, 100)
    """
    if text is None:
        return Fraction(1)
    fraction = parse_number(text)
    if fraction is None or not 0 < fraction <= 1:
        raise ValueError(
            f"{option} is {text!s:.60}; expected a number above 0 and up to 1, such as {example}"
        )
    return fraction


def parse_number(text: object) -> Fraction | None:
    """A decimal number, exactly; None if it is none, or longer than anyone means.

    >>> parse_number("2e-3"), parse_number("1e-999999999"), parse_number("nan")
    (Fraction(1, 500), None, None)
    """
    if not isinstance(text, str) or len(text) > MAX_DIGITS or EXPONENT.search(text):
        return None
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        return None


def check_number(field: str, value: int | None, most: int) -> None:
    """ValueError if an option that is given is not a number from 1 to `most`."""
    if value is not None and not 1 <= value <= most:
        raise ValueError(
            f"{name_option(field)} is {value!s:.60}; expected a number from 1 to {most:,}"
        )

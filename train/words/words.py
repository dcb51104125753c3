"""What the text of a setting means, by the setting's type: numbers, words for true, paths.

Decimal numbers only, and none with leading zeros, so that no base can be mistaken.
"""

import math
import os
import re
import reprlib
import types
import typing
from collections.abc import Iterable
from typing import Any, Literal

from shards.screen.url import is_url, show_url
from train.words.yaml_file import Entry

NUMBER = re.compile(r"[+-]?(0|[1-9][0-9_]*)?(\.[0-9_]*)?([eE][+-]?[0-9]{1,3})?")
MAX_DIGITS = 40
BOOLS = {"true": True, "yes": True, "on": True, "1": True}
BOOLS |= {"false": False, "no": False, "off": False, "0": False}
VARIABLE = re.compile(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)\})")
NAMED = re.compile(r"([\w.-]+)=(.+)", re.DOTALL)
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 80


def read_word(value: Any, wanted: Any) -> Any:
    """What text means where `wanted` is expected; text that means nothing there, as it is.

    >>> read_word("1e-3", float), read_word("1_000", int), read_word("off", bool | None)
    (0.001, 1000, False)
    >>> read_word("010", int), read_word("1:30", int), read_word("no", str)
    ('010', '1:30', 'no')
    >>> read_word("a, b=c", tuple[str, ...])
    ('a', 'b=c')
    """
    if is_list(wanted):
        if isinstance(value, str) and value != "null":
            return tuple(part for part in map(str.strip, value.split(",")) if part)
        return () if value in (None, "null") else tuple(value) if isinstance(value, list) else value
    members = expand_union(wanted)
    if not isinstance(value, str):
        return value
    if value == "null" and type(None) in members:
        return None
    if bool in members:
        return BOOLS.get(value.strip().lower(), value)
    if {int, float} & {*members}:
        number = read_number(value.strip())
        return value if number is None else number
    return value


def read_number(text: str) -> int | float | None:
    """A number as people write it, a whole one as an int; None for any other text.

    >>> read_number("-1_000"), read_number("1e5"), read_number("2.5"), read_number("08")
    (-1000, 100000, 2.5, None)
    """
    if len(text) > MAX_DIGITS or not NUMBER.fullmatch(text):
        return None
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def fits(value: Any, wanted: Any) -> bool:
    """Whether a value is of the field's type: finite, and in 64 bits."""
    if is_list(wanted):
        return isinstance(value, tuple) and all(isinstance(part, str) and part for part in value)
    members = expand_union(wanted)
    if isinstance(value, str) and value in find_words(members):
        return True
    if isinstance(value, bool):
        return bool in members
    if isinstance(value, int):
        return bool({int, float} & {*members}) and abs(value) < 2**63
    if isinstance(value, float):
        return float in members and math.isfinite(value)
    return type(value) in members


def expand_path(path: str, entry: Entry) -> str:
    """A path with ~ and $NAME replaced as a shell would; ValueError if it cannot be one."""
    name = f"{entry.place}{entry.section}.{entry.key}"
    if not path.strip():
        raise ValueError(f"{name} is empty; expected a path")
    if "\0" in path:
        raise ValueError(f"{name} is {show(path)}; a path has no NUL character")
    if entry.section == "infrastructure" and is_url(path):
        raise ValueError(
            f"{name} is the URL {show_url(path)}; a run reads and writes local folders"
        )
    unset = [n for n in ("".join(found) for found in VARIABLE.findall(path)) if n not in os.environ]
    if unset:
        raise ValueError(f"{name} is {show(path)}, but ${unset[0]} is not set")
    expanded = VARIABLE.sub(
        lambda found: os.environ[found[1] or found[2]], os.path.expanduser(path)
    )
    try:
        expanded.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{name} is {show(path)}, which is not valid UTF-8") from None
    return expanded


def expand_named(text: str, entry: Entry) -> str:
    """The same for a path that may have a name before it: `name=path`."""
    name, path = split_name(text)
    path = expand_path(path, entry)
    return path if name is None else f"{name}={path}"


def split_name(text: str) -> tuple[str | None, str]:
    """The name, if there is one, and the path of `name=path`.

    >>> split_name("wiki=shards/wiki"), split_name("shards/a=b")
    (('wiki', 'shards/wiki'), (None, 'shards/a=b'))
    """
    found = NAMED.fullmatch(text)
    return (found[1], found[2]) if found else (None, text)


def is_list(wanted: Any) -> bool:
    """Whether a field is a list of texts."""
    return typing.get_origin(wanted) is tuple


def expand_union(wanted: Any) -> tuple[Any, ...]:
    """The members of a union; any other type is its own only member."""
    # Of types alone it is a UnionType, with a Literal among them typing's Union.
    is_union = typing.get_origin(wanted) in (types.UnionType, typing.Union)
    return typing.get_args(wanted) if is_union else (wanted,)


def find_words(members: Iterable[Any]) -> list[str]:
    """The words that may stand there as they are."""
    literals = (member for member in members if typing.get_origin(member) is Literal)
    return [word for literal in literals for word in typing.get_args(literal)]


def describe(wanted: Any) -> str:
    """A field's type in words.

    >>> describe(int | None), describe(int | Literal["auto"])
    ('a whole number or null', 'a whole number or auto')
    """
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        type(None): "null",
    }
    if is_list(wanted):
        return "a list of texts"
    members = expand_union(wanted)
    if typing.get_origin(wanted) is Literal:
        return "one of " + ", ".join(typing.get_args(wanted))
    kinds = [words[member] for member in members if member in words]
    return " or ".join([*kinds, *find_words(members)])


def hint_number(value: Any) -> str:
    """What a number lacks that looks like one.

    >>> hint_number("010"), hint_number("9" * 20), hint_number("ten")
    (' without leading zeros', ' below 2**63', '')
    """
    digits = str(value).strip().lstrip("+-") if isinstance(value, str | int) else ""
    if not digits.isdigit():
        return ""
    return " without leading zeros" if digits.startswith("0") else " below 2**63"


def show(value: Any) -> str:
    """A value as it was given, cut where it is long."""
    return SHORT.repr(value)

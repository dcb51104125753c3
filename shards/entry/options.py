"""A command's options, declared once: as the fields of the dataclass that they fill.

A field that is an option has its help and its default; a field that is itself a dataclass stands
for the options in it:

    @dataclass(frozen=True)
    class Greeting:
        name: Annotated[str, typer.Option(help="Whom to greet.")] = "you"

    @takes_options
    def greet(greeting: Greeting, loud: bool = False) -> None: ...

makes a command with the options --name and --loud.
"""

import copy
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.models import ArgumentInfo, ParameterInfo

from shards.screen.url import refuse_url

# Options and arguments that are text, because they may be a pattern or a name as well as a path.
PATHS_AS_TEXT = {
    "drop_contained",
    "out",
    "train",
    "validation",
    "config",
    "prompt_file",
    "prompt_lines",
}

# What the help calls a path.
PATH = "<path>"

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[section.key=value ...]", help="Settings of the run.")
]


def takes_options(command: Callable[..., None]) -> Callable[..., None]:
    """Decorate a command so that each dataclass parameter becomes that dataclass's options."""
    hints = typing.get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        hint = hints[parameter.name]
        if is_dataclass(hint):
            given = [*list_options(hint)]
        else:
            given = [parameter.replace(annotation=take_text(hint))]
        parameters += [option.replace(kind=inspect.Parameter.KEYWORD_ONLY) for option in given]

    @wraps(command)
    def filled(**values: Any) -> None:
        command(
            **{
                name: build(hint, values) if is_dataclass(hint) else fill(name, hint, values[name])
                for name, hint in hints.items()
                if name != "return"
            }
        )

    filled.__annotations__ = {option.name: option.annotation for option in parameters}
    filled.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return filled


def list_options(kind: Any) -> Iterator[inspect.Parameter]:
    """The options of a dataclass, in the order of its fields."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        hint = hints[field.name]
        if is_dataclass(hint):
            yield from list_options(hint)
        elif is_option(hint):
            assert field.default_factory is MISSING, f"{field.name}: Typer needs a default to show"
            default = inspect.Parameter.empty if field.default is MISSING else field.default
            wanted, *extras = typing.get_args(hint)
            if takes_several(wanted):  # Typer wants a list for an option that may be repeated.
                assert default is not inspect.Parameter.empty, f"{field.name}: may be left out"
                hint, default = Annotated[list[str] | None, *extras], None
            yield inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=default,
                annotation=take_text(hint),
            )


def build(kind: Any, values: Mapping[str, Any]) -> Any:
    """The dataclass filled with the options' values; other fields keep their defaults."""
    hints = typing.get_type_hints(kind, include_extras=True)
    filled: dict[str, Any] = {}
    for field in fields(kind):
        hint = hints[field.name]
        if is_dataclass(hint):
            filled[field.name] = build(hint, values)
        elif is_option(hint) and values[field.name] is not None:
            value = fill(field.name, hint, values[field.name])
            filled[field.name] = tuple(value) if isinstance(value, list) else value
    return kind(**filled)


def take_text(hint: Any) -> Any:
    """The type that Typer is told: text for a path, for of no text it makes the current folder."""
    if not is_path(hint):
        return hint
    wanted, *extras = typing.get_args(hint)
    extras = [copy.copy(extra) for extra in extras]
    for extra in extras:
        extra.metavar = extra.metavar or PATH
        if extra.parser is not None:
            extra.parser = keep_empty(extra.parser)
    return Annotated[(str if wanted is Path else str | None, *extras)]


def keep_empty(parser: Callable[[str], Any]) -> Callable[[str], Any]:
    """A parser of an option's text that leaves an empty one as it is, for `fill` to refuse."""

    @wraps(parser)
    def parse(text: str) -> Any:
        return parser(text) if str(text).strip() else text  # A default is no text.

    return parse


def fill(name: str, hint: Any, value: Any) -> Any:
    """What an option's field or parameter gets; ValueError for an empty path."""
    if not is_path(hint) or not isinstance(value, str):
        return value
    if not value.strip():
        raise ValueError(
            f"--{name.replace('_', '-')} is empty; name what is meant, or leave the option out"
        )
    return Path(value)


def is_path(hint: Any) -> bool:
    """Whether an option's type is a path, or a path or None."""
    return is_option(hint) and typing.get_args(hint)[0] in (Path, Path | None)


def is_option(hint: Any) -> bool:
    """Whether a field's type is marked as an option or argument."""
    return any(isinstance(extra, ParameterInfo) for extra in getattr(hint, "__metadata__", ()))


def takes_several(hint: Any) -> bool:
    """Whether a field's type is a sequence of strings, or a union with one."""
    members = [member for member in (hint, *typing.get_args(hint)) if typing.get_origin(member)]
    sequences = [m for m in members if typing.get_origin(m) in (tuple, list, Sequence)]
    assert all(set(typing.get_args(m)) <= {str, ...} for m in sequences), f"{hint}: only strings"
    return bool(sequences)


def expect_paths(command: Callable[..., None]) -> Callable[..., None]:
    """Decorate a command so that a URL in place of a local path is refused before it does anything.

    An option with a parser of its own (shards/screen/url.py: read_place) takes URLs.
    """
    labels = dict(label_paths(typing.get_type_hints(command, include_extras=True)))

    @wraps(command)
    def checked(**values: Any) -> None:
        for name, label in labels.items():
            given = values.get(name)
            for path in given if isinstance(given, list | tuple) else [given]:
                if path is not None:
                    refuse_url(path, label)
        command(**values)

    return checked


def label_paths(hints: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each parameter that is a local path, and what to call it; "" for a set of shards."""
    for name, hint in hints.items():
        for extra in getattr(hint, "__metadata__", ()):
            wanted = typing.get_args(hint)[0]
            types = (wanted, *typing.get_args(wanted))
            # `take_text` has made text of most paths.
            is_path = Path in types or name in PATHS_AS_TEXT or extra.metavar == PATH
            if not isinstance(extra, ParameterInfo) or not is_path or extra.parser is not None:
                continue
            if name == "folder":
                yield name, ""
            elif isinstance(extra, ArgumentInfo):
                yield name, name.upper()
            else:
                # Where Typer is given no default, the first name is in its place.
                names = (extra.default, *(extra.param_decls or ()))
                declared = [str(word) for word in names if str(word).startswith("--")]
                yield name, (declared or [f"--{name.replace('_', '-')}"])[0]

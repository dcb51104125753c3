"""A settings file as entries, each with its line: sections, and below them `key: value`.

The file is YAML, read event by event, and a value is the text that stands there: its type is the
setting's (train/words/words.py). So 010 is not 8 and 1:30 is not 90, as YAML 1.1 would have it, and
nothing in a file can grow or be built. What may nest is named here.
"""

import codecs
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

# Nobody's settings are longer; what is, is another file given by mistake.
MAX_BYTES = 2**20
NULLS = ("", "~", "null", "Null", "NULL")
# Settings that are lists or mappings, and how deep these may go.
NESTED = ("data.mixture",)
MAX_DEPTH = 3
Value = TypeVar("Value")
SECTIONS_EXPECTED = "expected sections such as `training:` with keys below"


@dataclass(frozen=True)
class Entry:
    """One setting as it was given."""

    section: str
    key: str
    # Text from a file or the command line, or lists and mappings of it where a setting is one; from
    # a checkpoint's JSON any value.
    value: Any
    # Where, as messages begin with it: "c.yaml, line 3: ", or "" for the command line.
    place: str


def read_settings_text(path: Path) -> str:
    """The text of a settings file: UTF-8, or UTF-16 with its mark.

    Raises ValueError if it cannot be one, in words that begin with the path.
    """
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; expected a settings file")
    if not path.is_file():
        raise ValueError(
            f"{path}: is not a regular file, and every rank reads the settings; save them to a file"
        )
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(
            f"{path}: has {path.stat().st_size:,} bytes; settings have at most {MAX_BYTES:,}"
        )
    raw = path.read_bytes()
    is_utf16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = raw.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not text in UTF-8 (byte {error.start:,})") from None
    if "\0" in text:
        raise ValueError(
            f"{path}: not a text file: it holds NUL characters; if it is UTF-16, save it as UTF-8"
        )
    return text


def read_entries(text: str, origin: str, lists: Collection[str] = ()) -> Iterator[Entry]:
    """The settings in a file's text, in its order; a key that has no value has None.

    Those named in `lists` may be lists, of texts or of name: text. Raises ValueError, naming origin
    and line, for what is not plain `key: value` in sections, and for a section or key that stands
    there twice.

    >>> list(read_entries("training: {warmup_steps: 010}", "a.yaml"))
    [Entry(section='training', key='warmup_steps', value='010', place='a.yaml, line 1: ')]
    """
    events = _read_events(text, origin)
    if isinstance(next(events), yaml.StreamEndEvent):
        raise ValueError(f"{origin}: has no settings; {SECTIONS_EXPECTED}")
    if not isinstance(next(events), yaml.MappingStartEvent):
        raise ValueError(f"{origin}: {SECTIONS_EXPECTED}")
    for section in _read_keys(events, origin, ""):
        start = next(events)
        if not isinstance(start, yaml.MappingStartEvent):
            raise ValueError(
                f"{_place(origin, start)}{section} is a section; expected keys below it"
            )
        for key in _read_keys(events, origin, f"{section}."):
            value = next(events)
            place = _place(origin, value)
            if f"{section}.{key}" in NESTED:
                yield Entry(section, key, _read_nested(value, events, place), place)
                continue
            if f"{section}.{key}" in lists and not isinstance(value, yaml.ScalarEvent):
                found = [*_read_list(events, origin, f"{section}.{key}", value)]
                yield Entry(section, key, found, place)
                continue
            if not isinstance(value, yaml.ScalarEvent):
                raise ValueError(
                    f"{place}{section}.{key} is a list or has keys below it; expected one value"
                )
            yield Entry(section, key, _read_scalar(value), place)
    next(events)  # The document's end.
    after = next(events)
    if not isinstance(after, yaml.StreamEndEvent):
        raise ValueError(f"{_place(origin, after)}a second document begins; expected one")


def read_nested(text: str, name: str) -> Any:
    """The lists and mappings of text that stand on the command line for the setting `name`.

    >>> read_nested("{web/: 0.7, code/: 0.3}", "data.mixture")
    {'web/': '0.7', 'code/': '0.3'}
    """
    return _read_value(text, name, lambda start, events: _read_nested(start, events, f"{name}: "))


def read_list(text: str, name: str) -> list[str]:
    """The same for a setting that is a list of texts, those of a mapping as `name=text`.

    >>> read_list("{wiki: shards/wiki}", "training.eval_sets"), read_list("[a, b: c]", "x.y")
    (['wiki=shards/wiki'], ['a', 'b=c'])
    """
    found = _read_value(text, name, lambda start, events: [*_read_list(events, name, name, start)])
    return found or []


def _read_value(
    text: str, name: str, read: Callable[[yaml.Event, Iterator[yaml.Event]], Value]
) -> Value | None:
    """What `read` makes of the only value in a text; None where there is none."""
    events = _read_events(text, name)
    if isinstance(next(events), yaml.StreamEndEvent):
        return None
    value = read(next(events), events)
    next(events)  # The document's end.
    if not isinstance(next(events), yaml.StreamEndEvent):
        raise ValueError(f"{name}: a second document begins; expected one value")
    return value


def _read_nested(
    event: yaml.Event, events: Iterator[yaml.Event], place: str, depth: int = 0
) -> Any:
    """The value that begins with an event."""
    if isinstance(event, yaml.ScalarEvent):
        return _read_scalar(event)
    if depth == MAX_DEPTH:
        raise ValueError(f"{place}lists and mappings go more than {MAX_DEPTH} deep")
    items: list[Any] = []
    while not isinstance(event := next(events), yaml.SequenceEndEvent | yaml.MappingEndEvent):
        items.append(_read_nested(event, events, place, depth + 1))
    if isinstance(event, yaml.SequenceEndEvent):
        return items
    keys = items[::2]
    for key in keys:
        if not isinstance(key, str):
            raise ValueError(f"{place}a key is a list or mapping, or missing; expected a name")
        if keys.count(key) > 1:
            raise ValueError(f"{place}{key} stands there twice; keep one")
    return dict(zip(keys, items[1::2], strict=True))


def _read_scalar(event: yaml.ScalarEvent) -> str | None:
    is_null = event.style is None and event.value in NULLS
    return None if is_null else str(event.value)


def _read_keys(events: Iterator[yaml.Event], origin: str, prefix: str) -> Iterator[str]:
    """The keys of the mapping that has just begun; after each, the caller reads its value."""
    lines: dict[str, int] = {}
    while not isinstance(event := next(events), yaml.MappingEndEvent):
        if not isinstance(event, yaml.ScalarEvent):
            raise ValueError(f"{_place(origin, event)}a key is a list or mapping; expected a name")
        key = event.value
        if key in lines:
            kind = "key" if prefix else "section"
            raise ValueError(
                f"{_place(origin, event)}the {kind} {prefix}{key} stands here twice, first in "
                f"line {lines[key]}; keep one"
            )
        lines[key] = event.start_mark.line + 1
        yield key


def _read_list(
    events: Iterator[yaml.Event], origin: str, name: str, start: yaml.Event
) -> Iterator[str]:
    """The texts of the list that has just begun, those of a mapping or in one as `name=text`."""
    if isinstance(start, yaml.MappingStartEvent):
        for key in _read_keys(events, origin, f"{name}."):
            yield f"{key}={_read_text(next(events), origin, name)}"
        return
    while not isinstance(event := next(events), yaml.SequenceEndEvent):
        if isinstance(event, yaml.MappingStartEvent):
            yield from _read_list(events, origin, name, event)
        else:
            yield _read_text(event, origin, name)


def _read_text(event: yaml.Event, origin: str, name: str) -> str:
    if isinstance(event, yaml.ScalarEvent) and event.value:
        return str(event.value)
    raise ValueError(
        f"{_place(origin, event)}{name} holds an entry that is no text (in a mapping, a space "
        "comes after the colon)"
    )


def _read_events(text: str, origin: str) -> Iterator[yaml.Event]:
    """The file's events after its start, as far as they are plain values, lists and mappings."""
    for event in _parse(text, origin):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(
                f"{_place(origin, event)}*{event.anchor} is an alias, which is not read here; "
                "write the value itself"
            )
        if getattr(event, "tag", None):
            raise ValueError(
                f"{_place(origin, event)}{event.tag} is a tag, which is not read here; "
                "write the value alone"
            )
        if not isinstance(event, yaml.StreamStartEvent):
            yield event


def _parse(text: str, origin: str) -> Iterator[yaml.Event]:
    try:
        yield from yaml.parse(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        detail = " ".join(filter(None, (error.context, error.problem)))
        if "'\\t'" in detail:
            detail += "; indent with spaces"
        raise ValueError(f"{origin}{line}: not valid YAML ({detail})") from None
    # Numbers that no version of YAML has, and letters that Unicode does not have.
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        detail = " ".join(str(error).split())
        raise ValueError(f"{origin}: not valid YAML ({detail})") from None


def _place(origin: str, event: yaml.Event) -> str:
    return f"{origin}, line {event.start_mark.line + 1}: "

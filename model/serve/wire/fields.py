"""A request's JSON object, read field by field: each one checked, and none unknown.

    fields = Fields(read_object(body))
    temperature = fields.number("temperature", 1.0, lowest=0)
    fields.refuse_others()

A field that is null is one that is not there. All errors are 400s that name the field.
"""

import json
import re
import reprlib
from collections.abc import Sequence
from typing import Any

from model.serve.wire.errors import ApiError, refuse

Object = dict[str, Any]
LONE_SURROGATES = re.compile("[\ud800-\udfff]")


def read_object(body: bytes) -> Object:
    """The JSON object that a body is."""
    try:
        value = json.loads(body.decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise _refuse_json(f"byte {error.start:,} is not UTF-8") from None
    except RecursionError:
        raise _refuse_json("it is nested too deeply") from None
    except ValueError as error:  # Also for a number with thousands of digits.
        raise _refuse_json(str(error)) from None
    if not isinstance(value, dict):
        raise _refuse_json(f"it is {show(value)}; expected an object")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON's")


def _refuse_json(reason: str) -> ApiError:
    return refuse(f"the body is not a JSON object: {reason}", code="invalid_json")


def show(value: object) -> str:
    """A value as an error may quote it: a part, if it is long."""
    return reprlib.repr(value)


class Fields:
    """The fields of an object; `path` comes before their names in errors."""

    def __init__(self, values: Object, path: str = "") -> None:
        self.values = values
        self.path = path
        self.known: set[str] = set()

    def get(self, name: str) -> Any:
        """The value of a field as it is; None if it is not there."""
        self.known.add(name)
        return self.values.get(name)

    def text(self, name: str, default: str | None = None) -> str | None:
        """A text."""
        value = self.get(name)
        return default if value is None else self.check_text(value, name)

    def check_text(self, value: Any, name: str) -> str:
        """The value, which must be a text, and one that has a UTF-8."""
        if not isinstance(value, str):
            raise self.wrong(name, value, "a string")
        if LONE_SURROGATES.search(value):
            raise self.wrong(name, value, "text: a lone surrogate is none")
        return value

    def texts(self, name: str, most: int, most_chars: int) -> tuple[str, ...]:
        """A text or a list of at most so many, none longer than that; () if there is none."""
        value = self.get(name)
        values = [] if value is None else value if isinstance(value, list) else [value]
        if len(values) > most:
            raise self.wrong(name, value, f"at most {most}")
        texts = tuple(self.check_text(one, name) for one in values)
        if any(len(text) > most_chars for text in texts):
            raise self.wrong(name, value, f"at most {most_chars:,} characters each")
        return texts

    def flag(self, name: str) -> bool:
        """True or false, which it is if it is not there."""
        value = self.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(name, value, "true or false")
        return bool(value)

    def whole(self, name: str, lowest: int, highest: int) -> int | None:
        """A whole number between two, both included."""
        value = self.get(name)
        if value is None:
            return None
        return self.check_whole(value, name, lowest, highest)

    def check_whole(self, value: Any, name: str, lowest: int, highest: int) -> int:
        """The value, which must be a whole number between two."""
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if not is_whole or not lowest <= value <= highest:
            raise self.wrong(name, value, f"a whole number from {lowest:,} to {highest:,}")
        return int(value)

    def number(self, name: str, default: float, lowest: float, highest: float) -> float:
        """A number between two, both included."""
        value = self.get(name)
        if value is None:
            return default
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not lowest <= value <= highest:
            raise self.wrong(name, value, f"a number from {lowest:g} to {highest:g}")
        return float(value)

    def nested(self, name: str) -> "Fields":
        """An object in this one; empty if it is not there."""
        value = self.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(name, value, "an object")
        return Fields(value or {}, f"{self.path}{name}.")

    def ignore(self, *names: str) -> None:
        """These change nothing in what is written."""
        self.known.update(names)

    def expect(self, name: str, allowed: Sequence[Any], reason: str) -> None:
        """A field that may only have a value which asks for nothing."""
        value = self.get(name)
        if value is not None and not any(
            value == one and type(value) is type(one) for one in allowed
        ):
            raise refuse(
                f"{self.path}{name} is {show(value)}: {reason}",
                self.path + name,
                "unsupported_value",
            )

    def refuse_others(self) -> None:
        """Refuse the fields that nobody asked for, as OpenAI does: one may be misspelled."""
        for name in self.values:
            if name not in self.known:
                shown = show(name)
                raise refuse(
                    f"unrecognized request argument: {self.path}{shown}",
                    f"{self.path}{shown.strip(chr(39))}",
                    "unknown_parameter",
                )

    def wrong(self, name: str, value: object, expected: str) -> ApiError:
        """The error for a field's value."""
        return refuse(f"{self.path}{name} is {show(value)}; expected {expected}", self.path + name)

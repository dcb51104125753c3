"""--keep-column: values of the source that stay beside each document, as columns of the sidecar.

What a column holds is said with its name, so that it is the same in every file and shard:

number     64-bit floating point; text that spells a number is one, and a 32-bit number is taken for
           the decimal number that it is written as, so that 0.65 stays 0.65
integer    whole numbers of 64 bits, or text that spells one
text       text, and dates and times as ISO 8601 writes them
boolean    true and false, or text that spells one of them

Null, a key that is missing, and blank text where no text is wanted, are null.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prep.readers.columns import make_valid
from prep.readers.documents import is_text
from shards.sidecar import CHAT_COLUMNS, SIDECAR_SCHEMA

KINDS = {
    "number": pa.float64(),
    "integer": pa.int64(),
    "text": pa.string(),
    "boolean": pa.bool_(),
}
SHOWN_CHARACTERS = 40
TRUTHS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True)
class Kept:
    """A column that is kept, and what it holds: one of KINDS."""

    name: str
    kind: str

    def __str__(self) -> str:
        return f"{self.name}:{self.kind}"

    @property
    def type(self) -> pa.DataType:
        """Its type in the sidecar."""
        return KINDS[self.kind]

    def convert(self, values: pa.Array) -> tuple[pa.Array, dict[int, str]]:
        """The values as the sidecar has them, and the texts that are none, by their places.

        ValueError if the column holds what this kind cannot.
        """
        if not pa.types.is_union(values.type):
            return self._convert(values)
        # Values of several types on the lines: each as what it is.
        codes, offsets = values.type_codes.to_numpy(), values.offsets.to_numpy()
        parts = [self._convert(values.field(code)) for code in range(values.type.num_fields)]
        firsts = np.cumsum([0, *(len(part) for part, _ in parts)])
        places = firsts[codes] + offsets
        bad = {int(firsts[i]) + at: why for i, (_, m) in enumerate(parts) for at, why in m.items()}
        joined = pa.concat_arrays([part for part, _ in parts]).take(pa.array(places))
        misfits = {i: bad[place] for i, place in enumerate(places.tolist()) if place in bad}
        return joined, misfits

    def _convert(self, values: pa.Array) -> tuple[pa.Array, dict[int, str]]:
        found = values.type
        if pa.types.is_dictionary(found):
            return self._convert(values.dictionary_decode())
        if pa.types.is_null(found):
            return pa.nulls(len(values), self.type), {}
        if is_text(found):
            texts = make_valid(values.cast(pa.large_binary()).view(pa.large_string()))[0]
            return (texts.cast(pa.string()), {}) if self.kind == "text" else self._read(texts)
        is_number = pa.types.is_integer(found) or pa.types.is_floating(found)
        if self.kind == "number" and (is_number or pa.types.is_decimal(found)):
            if pa.types.is_float16(found):
                values = values.cast(pa.float32())
            if pa.types.is_float32(values.type):
                values = values.cast(pa.string())
            return values.cast(pa.float64(), safe=False), {}
        if self.kind == "integer" and is_number:
            return self._make_whole(values), {}
        if self.kind == "boolean" and pa.types.is_boolean(found):
            return values, {}
        if self.kind == "text" and (pa.types.is_date(found) or pa.types.is_timestamp(found)):
            return values.cast(pa.string()), {}
        raise ValueError(
            f"--keep-column {self}: the column holds {found}; expected {self.kind}, so name "
            f"another one of {', '.join(KINDS)}, or another column"
        )

    def _make_whole(self, values: pa.Array) -> pa.Array:
        try:
            return values.cast(pa.int64())
        except pa.ArrowInvalid as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"--keep-column {self}: the column holds other than whole numbers of 64 bits "
                f"({reason}); keep it as {self.name}:number"
            ) from None

    def _read(self, texts: pa.Array) -> tuple[pa.Array, dict[int, str]]:
        """Texts as the numbers, or true and false, that they spell."""
        trimmed = pc.utf8_trim_whitespace(texts)
        trimmed = pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, trimmed.type), trimmed)
        if self.kind != "boolean":
            try:
                return trimmed.cast(self.type), {}
            except pa.ArrowInvalid:
                pass
        misfits: dict[int, str] = {}
        values = []
        for place, text in enumerate(trimmed.to_pylist()):
            value = None if text is None else self._parse(text)
            if text is not None and value is None:
                shown = text[:SHOWN_CHARACTERS] + ("..." if len(text) > SHOWN_CHARACTERS else "")
                misfits[place] = (
                    f"--keep-column {self}: {self.name!r} holds the text {shown!r}, which is no "
                    f"{self.kind}"
                )
            values.append(value)
        return pa.array(values, self.type), misfits

    def _parse(self, text: str) -> float | bool | None:
        """The value that a text spells; None if it spells none."""
        if self.kind == "boolean":
            return TRUTHS.get(text.lower())
        try:
            value: float = pa.array([text]).cast(self.type)[0].as_py()
        except pa.ArrowInvalid:
            return None
        return value


def parse_kept(texts: tuple[str, ...]) -> tuple[Kept, ...]:
    """Read --keep-column as often as it was given; ValueError if one is none, or comes twice."""
    kept: list[Kept] = []
    for text in texts:
        name, _, kind = text.rpartition(":")
        if not name or kind not in KINDS:
            raise ValueError(
                f"--keep-column is {text!r:.60}; expected a column and what it holds, one of "
                f"{', '.join(KINDS)}, such as score:number"
            )
        if name in SIDECAR_SCHEMA.names or name in CHAT_COLUMNS:
            raise ValueError(f"--keep-column {text}: the sidecar has a column {name} of its own")
        if name in (entry.name for entry in kept):
            raise ValueError(f"--keep-column names {name!r:.60} twice; name it once")
        kept.append(Kept(name, kind))
    return tuple(kept)

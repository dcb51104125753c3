"""--where: conditions on a column or key, such as language=en, score>=0.65, date<2020-01-01.

What a value is compared as depends on its own type and on nothing else in the file, so it is the
same in parquet and in JSON lines:

numbers         as numbers
true, false     as true or false
dates, times    as moments: 2019, 2019-01, 2019-01-01, 2019-01-01T12:00, or in full
                2019-01-01 12:00:00.5+02:00; a date without a time is its midnight, a year or month
                its first one, and a time without a zone is in UTC
text            = and != compare the text; < <= > >= compare numbers if the condition gives a
                number, dates if it gives a date, else the text, by code points

Null, a missing key, and where a number or date is asked for blank text, meet no condition; NaN
meets != alone. Text that is not the number or the date that it is compared with is a bad document.
"""

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from prep.readers.documents import is_text

COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
    "=": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
_KERNELS: dict[str, Callable[[Any, Any], Any]] = {
    "!=": pc.not_equal,
    ">=": pc.greater_equal,
    "<=": pc.less_equal,
    "=": pc.equal,
    ">": pc.greater,
    "<": pc.less,
}
_CONDITION = re.compile(r"\s*([\w.-]+)\s*(!=|>=|<=|=|>|<)\s*(.*?)\s*", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?inf(inity)?|nan", re.I | re.A)
_WHOLE = re.compile(r"[+-]?\d{1,300}", re.A)
_DATE = re.compile(
    r"(\d{4})(?:-(\d\d)(?:-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d+))?)?"
    r" ?(Z|UTC|[+-]\d\d(?::?\d\d)?)?)?)?)?",
    re.I | re.A,
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNIT_NANOSECONDS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
_DAY_NANOSECONDS = 86_400 * 10**9
_SHOWN_CHARACTERS = 40
_DATE_FORM = "a date such as 2019-01-01 or 2019-01-01T12:00:00Z"


@dataclass
class Judgement:
    """For which values of a column a condition holds, and which cannot be compared at all."""

    holds: npt.NDArray[np.bool_]
    misfits: dict[int, str] = field(default_factory=dict)  # why, for the value at this place


@dataclass(frozen=True)
class Condition:
    """One --where: a column, how to compare, and with what."""

    text: str
    column: str
    comparison: str
    value: str

    def judge(self, values: pa.Array) -> Judgement:
        """Compare each value of the column; ValueError if values of its type cannot be."""
        if not pa.types.is_union(values.type):
            return self._judge(values)
        # Values of several types on the lines: each as what it is.
        codes = values.type_codes.to_numpy()
        found = Judgement(np.zeros(len(values), np.bool_))
        for code in np.unique(codes).tolist():
            places = np.flatnonzero(codes == code)
            offsets = values.offsets.take(pa.array(places))
            part = self._judge(values.field(code).take(offsets))
            found.holds[places] = part.holds
            found.misfits |= {int(places[i]): why for i, why in part.misfits.items()}
        return found

    def _judge(self, values: pa.Array) -> Judgement:
        kind = values.type
        if pa.types.is_dictionary(kind):
            return self._judge(values.dictionary_decode())
        if pa.types.is_null(kind):
            return Judgement(np.zeros(len(values), np.bool_))
        if is_text(kind):
            return self._judge_text(to_binary(values))
        holds = self._compare(values).fill_null(False)
        return Judgement(holds.to_numpy(zero_copy_only=False))

    def _compare(self, values: pa.Array) -> Any:
        """Compare values other than text; null where they are null."""
        kind, number = values.type, parse_number(self.value)
        if pa.types.is_boolean(kind):
            wanted = {"true": True, "1": True, "false": False, "0": False}.get(self.value.lower())
            return self._apply(values, self._expect(wanted, kind, "true or false"))
        if pa.types.is_temporal(kind) and not pa.types.is_time(kind):
            return self._compare_moments(values)
        if pa.types.is_integer(kind) and isinstance(number, int):
            return self._compare_integers(values, number)
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            self._expect(number, kind, "a number")
            if pa.types.is_integer(kind):  # score>=0.65, where all are 0 or 1
                values = values.cast(pa.float64(), safe=False)
            with np.errstate(over="ignore"):
                rounded = float(values.type.to_pandas_dtype()(self.value))
            if pa.types.is_float16(kind):  # Arrow compares none.
                values = values.cast(pa.float32())
            return self._apply(values, rounded)
        if pa.types.is_decimal(kind):
            self._expect(number, kind, "a number")
            return self._apply_each(values, Decimal(self.value))
        self._refuse(kind, "the name of a column of text, numbers, dates, or true and false")

    def _compare_moments(self, values: pa.Array) -> Any:
        kind = values.type
        if pa.types.is_duration(kind) or pa.types.is_interval(kind):
            self._refuse(kind, "the name of another column")
        wanted = self._expect(parse_moment(self.value), kind, _DATE_FORM)
        if pa.types.is_date32(kind):
            unit, values = _DAY_NANOSECONDS, values.cast(pa.int32()).cast(pa.int64())
        else:
            unit = _UNIT_NANOSECONDS[getattr(kind, "unit", "ms")]
            values = values.cast(pa.int64())
        whole, rest = divmod(wanted, unit)
        if not rest:
            return self._compare_integers(values, whole)
        # The moment lies between two that the column can hold.
        if self.comparison in ("=", "!="):
            return pc.if_else(values.is_valid(), self.comparison == "!=", None)
        return self._compare_integers(values, whole, {"<": "<=", ">=": ">"})

    def _compare_integers(
        self, values: pa.Array, wanted: int, instead: dict[str, str] | None = None
    ) -> Any:
        comparison = (instead or {}).get(self.comparison, self.comparison)
        try:
            return _KERNELS[comparison](values, pa.scalar(wanted, values.type))
        except (pa.ArrowInvalid, OverflowError):  # Beyond all that the column can hold.
            return pc.if_else(values.is_valid(), COMPARISONS[comparison](0, wanted), None)

    def _judge_text(self, values: pa.Array) -> Judgement:
        number, moment = parse_number(self.value), parse_moment(self.value)
        if self.comparison in ("=", "!=") or (number is None and moment is None):
            wanted = pa.scalar(self.value.encode("utf-8", "surrogateescape"), values.type)
            holds = _KERNELS[self.comparison](values, wanted).fill_null(False)
            return Judgement(holds.to_numpy(zero_copy_only=False))
        found = Judgement(np.zeros(len(values), np.bool_))
        compare = COMPARISONS[self.comparison]
        for place, content in enumerate(values.to_pylist()):
            text = (content or b"").decode("utf-8", "replace").strip()
            if not text:
                continue
            mine = parse_number(text) if number is not None else None
            theirs: int | float | None = number
            if mine is None and moment is not None:  # 2019 may be a number or a year.
                mine, theirs = parse_moment(text), moment
            if mine is None or theirs is None:
                found.misfits[place] = self._describe_misfit(text, number is not None)
            else:
                found.holds[place] = compare(mine, theirs)
        return found

    def _describe_misfit(self, text: str, is_number: bool) -> str:
        shown = text[:_SHOWN_CHARACTERS] + ("..." if len(text) > _SHOWN_CHARACTERS else "")
        return (
            f"--where {self.text!r}: {self.column!r} holds the text {shown!r}, which is not a "
            f"{'number' if is_number else 'date'}, so it cannot be compared with {self.value!r}"
        )

    def _apply(self, values: pa.Array, wanted: Any) -> Any:
        return _KERNELS[self.comparison](values, pa.scalar(wanted, values.type))

    def _apply_each(self, values: pa.Array, wanted: Decimal) -> Any:
        compare = COMPARISONS[self.comparison]
        if wanted.is_nan():
            return pc.if_else(values.is_valid(), self.comparison == "!=", None)
        found = [None if value is None else compare(value, wanted) for value in values.to_pylist()]
        return pa.array(found, pa.bool_())

    def _expect(self, wanted: Any, kind: pa.DataType, form: str) -> Any:
        if wanted is None:
            self._refuse(kind, form)
        return wanted

    def _refuse(self, kind: pa.DataType, form: str) -> NoReturn:
        raise ValueError(
            f"--where {self.text!r}: the column {self.column!r} holds {kind}, which cannot be "
            f"compared with {self.value!r}; give {form}"
        )


def parse_condition(text: str) -> Condition:
    """Parse one --where; ValueError if it is not a condition.

    >>> parse_condition("language_score >= 0.65")
    Condition(text='language_score >= 0.65', column='language_score', comparison='>=', value='0.65')
    """
    found = _CONDITION.fullmatch(text)
    if found is None:
        raise ValueError(
            f"--where is {text!r}; expected a column, one of {' '.join(COMPARISONS)}, and a value, "
            "such as language=en"
        )
    return Condition(text, *found.groups())


def parse_number(text: str) -> int | float | None:
    """The number that a text is; None if it is none.

    >>> parse_number("10"), parse_number("-.5e1"), parse_number("1,000")
    (10, -5.0, None)
    """
    if _WHOLE.fullmatch(text):
        return int(text)
    return float(text) if _NUMBER.fullmatch(text) else None


def parse_moment(text: str) -> int | None:
    """The date or time that a text is, in nanoseconds since 1970 UTC; None if it is none.

    >>> parse_moment("1970-01-02"), parse_moment("1970-01-01 01:00:00.5+01:00")
    (86400000000000, 500000000)
    """
    found = _DATE.fullmatch(text)
    if found is None:
        return None
    *numbers, fraction, zone = found.groups()
    year, month, day, hour, minute, second = (int(number or 0) for number in numbers)
    try:
        start = datetime(year, month or 1, day or 1, hour, minute, second, tzinfo=UTC)
    except ValueError:  # The 31st of June.
        return None
    offset = 0
    if zone and zone[0] in "+-":
        digits = zone[1:].replace(":", "").ljust(4, "0")
        offset = (int(digits[:2]) * 60 + int(digits[2:])) * (-1 if zone[0] == "-" else 1)
    seconds = (start - _EPOCH) // timedelta(seconds=1) - offset * 60
    return seconds * 10**9 + int((fraction or "0")[:9].ljust(9, "0"))


def to_binary(values: pa.Array) -> pa.Array:
    """Text of any Arrow type as large_binary."""
    return values.cast(pa.large_binary())

"""A condition on the columns of documents: score >= 3 and language in ("en", "de").

Written as in Python, read by Python's parser, and nothing of it is ever run: what is not below is
refused.

    score >= 3, 2 <= score < 4      == != < <= > >= between columns, numbers, texts, True and False
    language in ("en", "de")        one of several values; `not in`
    "wikipedia.org" in url          a text inside the column's; `not in`
    score is None                   no value; `is not None`
    is_english                      a column of true and false
    and, or, not, (...)
    column("warc-date")             a column whose name is none of Python's

A comparison with a value that is missing (null) is neither true nor false, and so is what `and`,
`or` and `not` make of it where it decides, as in SQL. Only documents for which the whole is true
are chosen. Loads neither numpy nor pyarrow: settings are checked with it.
"""

import ast
import math
import warnings
from dataclasses import dataclass
from typing import NoReturn

Value = str | int | float | bool

# A longer one is most likely a file.
MAX_CHARACTERS = 10_000
MOST = 2**63
SHOWN_CHARACTERS = 60
COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
}
# 3 <= score is score >= 3.
MIRRORED = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
EXAMPLE = "score >= 3 and language == 'en'"


@dataclass(frozen=True)
class Column:
    """The value that a document has in a column."""

    name: str


@dataclass(frozen=True)
class Literal:
    """A value that the condition names."""

    value: Value


@dataclass(frozen=True)
class Compare:
    """A column's value compared with another one."""

    left: Column
    sign: str
    right: Column | Literal


@dataclass(frozen=True)
class OneOf:
    """Whether a column's value is one of several."""

    column: Column
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Contains:
    """Whether a column's text holds another one."""

    column: Column
    text: str


@dataclass(frozen=True)
class IsNull:
    """Whether a column has no value."""

    column: Column


@dataclass(frozen=True)
class Not:
    """The opposite."""

    inner: "Node"


@dataclass(frozen=True)
class Both:
    """All of them (`and`), or any (`or`)."""

    word: str
    parts: tuple["Node", ...]


Node = Column | Compare | OneOf | Contains | IsNull | Not | Both


@dataclass(frozen=True)
class Condition:
    """A condition, read: spaces, quotes and sides do not matter to whether two are equal."""

    root: Node

    @property
    def columns(self) -> list[str]:
        """The columns that it names, in their order, each once."""
        return list(dict.fromkeys(list_columns(self.root)))


def parse_condition(text: str, name: str = "data.where") -> Condition:
    """Parse a condition; ValueError, in one line that quotes what is wrong, if that fails.

    `name` is what the error calls it.

    >>> parse_condition("3 <= score and url is not None").columns
    ['score', 'url']
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(
            f"{name} has {len(text):,} characters; expected {MAX_CHARACTERS:,} at most"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of escapes that are none, such as "\d".
            tree = ast.parse(text.strip(), mode="eval")
        return Condition(Reader(name).read(tree.body))
    except SyntaxError as error:
        reason = error.msg
    except (MemoryError, RecursionError):
        reason = "it is nested too deep"
    except UnicodeEncodeError:
        reason = "it is not valid UTF-8"
    raise ValueError(
        f"{name} is {text!r:.{SHOWN_CHARACTERS}}: {reason}; expected a condition such as {EXAMPLE}"
    )


def list_columns(node: Node | Literal) -> list[str]:
    """The columns below a node, as often as it names them."""
    match node:
        case Column(name):
            return [name]
        case Compare(left, _, right):
            return [left.name, *list_columns(right)]
        case OneOf(column, _) | Contains(column, _) | IsNull(column):
            return [column.name]
        case Not(inner):
            return list_columns(inner)
        case Both(_, parts):
            return [name for part in parts for name in list_columns(part)]
    return []


@dataclass
class Reader:
    """Makes nodes of Python's syntax tree, and refuses what has no meaning here."""

    name: str

    def read(self, tree: ast.expr) -> Node:
        """An expression that is true or false."""
        match tree:
            case ast.BoolOp(op, values):
                word = "and" if isinstance(op, ast.And) else "or"
                return Both(word, tuple(map(self.read, values)))
            case ast.UnaryOp(ast.Not(), operand):
                return Not(self.read(operand))
            case ast.Compare(left, signs, rights):
                sides = [left, *rights]
                pairs = zip(sides[:-1], signs, sides[1:], strict=True)
                parts = [self._compare(a, sign, b) for a, sign, b in pairs]
                return parts[0] if len(parts) == 1 else Both("and", tuple(parts))
        column = self._find_column(tree)
        if column is None:
            self._refuse(tree, "is neither a comparison nor a column")
        return column

    def _compare(self, left: ast.expr, sign: ast.cmpop, right: ast.expr) -> Node:
        if isinstance(sign, ast.Is | ast.IsNot):
            column = self._find_column(left)
            if column is None or not is_null(right):
                self._refuse(right, "comes after `is`; expected a column, `is` and None")
            return negate_if(isinstance(sign, ast.IsNot), IsNull(column))
        if isinstance(sign, ast.In | ast.NotIn):
            return negate_if(isinstance(sign, ast.NotIn), self._read_in(left, right))
        one, other = self._read_operand(left), self._read_operand(right)
        if isinstance(one, Column):
            return Compare(one, COMPARISONS[type(sign)], other)
        if isinstance(other, Column):
            return Compare(other, MIRRORED[COMPARISONS[type(sign)]], one)
        self._refuse(left, "is compared with no column")

    def _read_in(self, left: ast.expr, right: ast.expr) -> Node:
        column, place = self._find_column(left), self._find_column(right)
        if place is not None:
            if not isinstance(left, ast.Constant) or not isinstance(left.value, str):
                self._refuse(left, "is not a text that a column may hold")
            return Contains(place, left.value)
        if column is None:
            self._refuse(left, "is not a column")
        if not isinstance(right, ast.Tuple | ast.List | ast.Set) or not right.elts:
            self._refuse(right, "is not a list of values such as ('en', 'de')")
        return OneOf(column, tuple(self._read_value(entry) for entry in right.elts))

    def _read_operand(self, tree: ast.expr) -> Column | Literal:
        column = self._find_column(tree)
        return column if column is not None else Literal(self._read_value(tree))

    def _read_value(self, tree: ast.expr) -> Value:
        if is_null(tree):
            self._refuse(tree, "equals nothing; ask with `is None` whether there is a value")
        match tree:
            case ast.UnaryOp(ast.USub(), ast.Constant(int() | float() as number)) if not isinstance(
                number, bool
            ):
                return self._check_number(tree, -number)
            case ast.Constant(bool() | str() as value):
                return value
            case ast.Constant(int() | float() as number):
                return self._check_number(tree, number)
        self._refuse(tree, "is neither a column nor a value")

    def _check_number(self, tree: ast.expr, number: int | float) -> int | float:
        if isinstance(number, float) and not math.isfinite(number):
            self._refuse(tree, "is beyond all numbers")
        if isinstance(number, int) and not -MOST <= number < MOST:
            self._refuse(tree, "is beyond 64 bits")
        return number

    def _find_column(self, tree: ast.expr) -> Column | None:
        """The column that an expression names; None if it names none."""
        match tree:
            case ast.Name(name) if not is_null(tree):
                return Column(name)
            case ast.Attribute(inner, name):
                outer = self._find_column(inner)
                return None if outer is None else Column(f"{outer.name}.{name}")
            case ast.Call(ast.Name("column"), [ast.Constant(str() as name)], []):
                return Column(name)
        return None

    def _refuse(self, tree: ast.expr, why: str) -> NoReturn:
        found = ast.unparse(tree)
        shown = found[:SHOWN_CHARACTERS] + ("..." if len(found) > SHOWN_CHARACTERS else "")
        raise ValueError(f"{self.name}: {shown} {why}; a condition is such as {EXAMPLE}")


def negate_if(is_negated: bool, node: Node) -> Node:
    """The node, or its opposite."""
    return Not(node) if is_negated else node


def is_null(tree: ast.expr) -> bool:
    """Whether an expression is None, or null as it is called elsewhere."""
    match tree:
        case ast.Constant(None) | ast.Name("null"):
            return True
    return False

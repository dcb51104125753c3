"""Questions about Python with short answers, read from its standard library: `quickstart --chat`.

Of two kinds, so that a score says what it measures. A *fact* has to be known, such as the module
that has a function: each is asked in several wordings, and one of them, another for each fact, is
held out. So a held-out question asks for a known fact in words that were seen with other facts
alone. A *rule* can be told from the question, such as the module in a dotted name: there, names are
held out, and no question about them is trained on.
"""

import ast
import builtins
import hashlib
import json
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from prep.python_docs import find_modules, name_module
from shards.disk.durable import write_file

Kind = Literal["fact", "rule"]
Pair = tuple[str, str]  # What is asked about, and the answer.
# How many names of the standard library a family asks about, of those there are.
MAX_FACTS, MAX_RULES = 200, 600
# One name of so many is held out of a rule.
ONE_OF = 5
MAX_TURNS = 3
TYPES = (str, bytes, list, dict, set, int, float, range, slice, property)
WORDINGS = {
    "module": (
        "Which module has {}?",
        "Where is {} defined?",
        "What do I import to use {}?",
        "In which module is {}?",
        "I need {}. Which module has it?",
        "Name the module of {}.",
    ),
    "base": (
        "What is {} derived from?",
        "Which class is the base of {}?",
        "What does {} inherit from?",
        "Name the base class of {}.",
        "{} is a subclass of what?",
        "Which class comes right above {}?",
    ),
    "type": (
        "Which type has the method {}?",
        "What do I call {} on?",
        "To which type does the method {} belong?",
        "Name the type that has {}.",
        "{} is a method of what?",
        "Objects of which type have {}?",
    ),
    "dotted": (
        "Which module is {} in?",
        "What is the module of {}?",
        "{} is part of which module?",
    ),
    "case": (
        "Is {} a class or a function?",
        "What is {}, a class or a function?",
        "Class or function: {}?",
    ),
}


@dataclass(frozen=True)
class Question:
    """A question with its answer, and whether it is held out of training."""

    family: str
    kind: Kind
    question: str
    answer: str
    is_held_out: bool


@dataclass(frozen=True)
class Definition:
    """A public class or function of a module of the standard library."""

    name: str
    module: str
    is_class: bool


def make_questions() -> list[Question]:
    """All questions, in an order that depends on this Python alone."""
    found = list(read_definitions(Path(sysconfig.get_path("stdlib"))))
    counts = Counter(definition.name for definition in found)
    unique = [definition for definition in found if counts[definition.name] == 1]
    tops = [(d.name, d.module) for d in unique if "." not in d.module]
    functions = [(d.name, "a function") for d in unique if not d.is_class]
    classes = [(d.name, "a class") for d in unique if d.is_class]
    half = min(len(functions), len(classes), MAX_RULES // 2)
    cased = [*choose(functions, half), *choose(classes, half)]
    dotted = choose([(f"{d.module}.{d.name}", d.module) for d in found], MAX_RULES)
    return [
        *ask_facts("module", choose(tops, MAX_FACTS)),
        *ask_facts("base", list_exceptions()),
        *ask_facts("type", list_methods()),
        *ask_rules("dotted", dotted),
        *ask_rules("case", cased),
    ]


def write_questions(questions: Sequence[Question], train: Path, tasks: Mapping[Kind, Path]) -> None:
    """Write those to train on as chats, and the held-out ones of each kind as a task.

    A chat has one to three questions in turn, so that a model sees that one may follow another. The
    same questions always give the same bytes.
    """
    trained = sorted((q for q in questions if not q.is_held_out), key=lambda q: digest(q.question))
    chats, first, size = list[str](), 0, 1
    while first < len(trained):
        messages = [
            {"role": role, "content": text}
            for q in trained[first : first + size]
            for role, text in (("user", q.question), ("assistant", q.answer))
        ]
        chats.append(json.dumps({"messages": messages}) + "\n")
        first, size = first + size, size % MAX_TURNS + 1
    write_file(train, "".join(chats))
    for kind, path in tasks.items():
        items = [
            {"prompt": q.question, "expected": q.answer, "family": q.family}
            for q in questions
            if q.is_held_out and q.kind == kind
        ]
        write_file(path, "".join(json.dumps(item) + "\n" for item in items))


def score_constant(questions: Sequence[Question], kind: Kind) -> float:
    """The share of held-out questions of a kind that one answer gets right, whatever is asked.

    It is the commonest one among those trained on, of each family.
    """
    right = total = 0
    for family in {q.family for q in questions if q.kind == kind}:
        own = [q for q in questions if q.family == family]
        counts = Counter(q.answer for q in own if not q.is_held_out)
        [(commonest, _)] = counts.most_common(1)
        right += sum(q.answer == commonest for q in own if q.is_held_out)
        total += sum(q.is_held_out for q in own)
    return right / total


def ask_facts(family: str, pairs: Iterable[Pair]) -> Iterator[Question]:
    """Each fact in all wordings, of which one is held out."""
    wordings = WORDINGS[family]
    for number, (name, answer) in enumerate(pairs):
        for i, wording in enumerate(wordings):
            is_held_out = i == number % len(wordings)
            yield Question(family, "fact", wording.format(name), answer, is_held_out)


def ask_rules(family: str, pairs: Iterable[Pair]) -> Iterator[Question]:
    """Each name in one wording; one of ONE_OF names is held out."""
    for number, pair in enumerate(pairs):
        wording = WORDINGS[family][number % len(WORDINGS[family])]
        is_held_out = number % ONE_OF == 0
        yield Question(family, "rule", wording.format(pair[0]), pair[1], is_held_out)


def choose(pairs: Sequence[Pair], number: int) -> list[Pair]:
    """So many of them, as if drawn, and always the same."""
    return sorted(pairs, key=lambda pair: digest(pair[0]))[:number]


def digest(text: str) -> str:
    """A hash in hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def read_definitions(library: Path) -> Iterator[Definition]:
    """What public modules name in __all__ and document, read from their source alone."""
    for path in find_modules(library):
        module = name_module(path.relative_to(library))
        if any(part.startswith("_") for part in module.split(".")):
            continue
        with warnings.catch_warnings(action="ignore"):  # About outdated string escapes.
            try:
                tree = ast.parse(path.read_bytes())
            except (SyntaxError, ValueError):
                continue
        public = list_public(tree)
        for node in tree.body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef) or node.name not in public:
                continue
            if ast.get_docstring(node):
                yield Definition(node.name, module, isinstance(node, ast.ClassDef))


def list_public(tree: ast.Module) -> set[str]:
    """The names in a module's __all__, as far as it is a plain list."""
    for node in tree.body:
        if not isinstance(node, ast.Assign) or "__all__" not in map(ast.unparse, node.targets):
            continue
        if isinstance(node.value, ast.List | ast.Tuple):
            values = [e.value for e in node.value.elts if isinstance(e, ast.Constant)]
            return {value for value in values if isinstance(value, str)}
    return set()


def list_exceptions() -> list[Pair]:
    """The built-in exceptions, each with the class that it is derived from."""
    found = {name: value for name, value in vars(builtins).items() if isinstance(value, type)}
    return [
        (name, value.__bases__[0].__name__)
        for name, value in sorted(found.items())
        # OSError has several names, one of which is its own.
        if issubclass(value, Exception) and value is not Exception and value.__name__ == name
    ]


def list_methods() -> list[Pair]:
    """The methods that one built-in type has alone, with the type."""
    owners: dict[str, list[str]] = {}
    for one in TYPES:
        for name, value in vars(one).items():
            if not name.startswith("_") and callable(value):
                owners.setdefault(name, []).append(one.__name__)
    return [(name, of[0]) for name, of in sorted(owners.items()) if len(of) == 1]

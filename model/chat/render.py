"""Renders chat templates, in a process of its own: the one that a template is run in.

A template is a stranger's program. Jinja's sandbox keeps it from everything but the messages; that
it ends, and what memory it takes, only a process can be held to. Each line of standard input is a
JSON object with a template and chats, each with messages, variables and the marks of what an
assistant wrote; each line of the output is a list with text or error for each, but the first, which
is empty: all is loaded. This file is run as a script and imports nothing of ours.
"""

import json
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MAX_BYTES = 2**29
MAX_CHARS = 2**22


class Generation(Extension):
    """The tag around what an assistant wrote; where marks are asked for, it puts them there."""

    tags = {"generation"}  # noqa: RUF012
    marks = ("", "")

    def parse(self, parser: Parser) -> nodes.Node:
        """The tag's body as a block, so that what is set in it is unknown outside."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        block = nodes.CallBlock(self.call_method("mark"), [], [], body)
        return block.set_lineno(line)

    def mark(self, caller: Callable[[], str]) -> str:
        """What was written, between marks."""
        begin, end = self.marks
        return begin + caller() + end


class PlainNamespace(Namespace):
    """A template's variables that loops may change; none with a name that Python knows."""

    def __init__(self, /, *args: Any, **values: Any) -> None:
        for name in dict(*args, **values):
            check_name(name)
        super().__init__(*args, **values)

    def __setitem__(self, name: str, value: Any) -> None:
        check_name(name)
        super().__setitem__(name, value)


def check_name(name: Any) -> None:
    """Raise SecurityError for a name that Python may know."""
    if not isinstance(name, str) or name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}")


def make_environment(has_clock: bool) -> ImmutableSandboxedEnvironment:
    """What templates are made for: the environment of transformers, less what none needs.

    Without a clock, what comes out depends on the messages alone, and not on the day.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    numbers = environment.globals["range"]
    environment.globals = {
        "range": numbers,
        "dict": make_dict,
        "namespace": PlainNamespace,
        "raise_exception": refuse,
    }
    if has_clock:
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.filters["tojson"] = to_json
    return environment


def make_dict(**values: Any) -> dict[str, Any]:
    """A new object."""
    return values


def refuse(message: str) -> None:
    """What a template calls for messages that it does not take."""
    raise TemplateError(str(message))


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """A value as JSON; Jinja's own filter would escape it for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


@lru_cache(maxsize=2)
def compile_template(template: str, has_clock: bool) -> Template:
    """A template, ready to render."""
    return make_environment(has_clock).from_string(template)


def render(
    template: str,
    messages: list[dict[str, Any]],
    variables: dict[str, Any],
    marks: list[str],
    has_clock: bool,
) -> str:
    """The text of messages. Raises TemplateError, or whatever else a template can end with."""
    pieces: list[str] = []
    num_chars = 0
    compiled = compile_template(template, has_clock)
    [generation] = [e for e in compiled.environment.extensions.values() if type(e) is Generation]
    generation.marks = (marks[0], marks[1])
    for piece in compiled.generate(messages=messages, **variables):
        num_chars += len(piece)
        if num_chars > MAX_CHARS:
            raise TemplateError(f"the text has more than {MAX_CHARS:,} characters")
        pieces.append(piece)
    text = "".join(pieces)
    text.encode("utf-8")  # Half of a surrogate pair, which a template can spell, is no text.
    return text


def limit_resources() -> None:
    """Bound the memory, and write no files; Windows has no such limits."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def limit_time(seconds: int) -> None:
    """End this process in so many seconds, even where its server is gone by then; 0 for never."""
    if hasattr(signal, "alarm"):
        signal.alarm(seconds)


def answer(template: str, has_clock: bool, chat: dict[str, Any]) -> dict[str, str]:
    """The text of one chat, or the error."""
    try:
        return {"text": render(template, has_clock=has_clock, **chat)}
    except MemoryError:
        return {"error": f"it needs more than {MAX_BYTES:,} bytes of memory"}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:500]}


def answer_line(line: bytes) -> bytes:
    """A line of the output."""
    try:
        asked = json.loads(line)
        answers = [answer(asked["template"], asked["has_clock"], chat) for chat in asked["chats"]]
        return json.dumps(answers).encode("ascii") + b"\n"
    except MemoryError:
        error = f"it needs more than {MAX_BYTES:,} bytes of memory"
        return json.dumps([{"error": error}]).encode("ascii") + b"\n"


def write(line: bytes) -> None:
    """Write to whoever waits for it."""
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()


def main() -> None:
    """Answer each line until there are no more; there are argv[1] seconds for each."""
    limit_resources()
    write(b"\n")
    for line in sys.stdin.buffer:
        limit_time(int(sys.argv[1]))
        write(answer_line(line))
        limit_time(0)


if __name__ == "__main__":
    main()

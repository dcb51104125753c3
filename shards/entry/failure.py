"""How a command ends that cannot go on: one line, and the traceback if it was asked for.

    with reporting(debug):
        ...

ValueError and OSError are mistakes and faults that the user can mend. Any other exception is a bug
of ours, or a limit of the machine, and is said to be unexpected.
"""

import logging
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from typing import Any, NoReturn, TextIO

from shards.disk.durable import advise_writing
from shards.screen.lines import LogLines, say, say_text
from shards.screen.secrets import forget, hide, learn_environment, learn_words

# An error that quotes what it met may be as long as that.
MAX_CHARS = 2000
# The class of what a panic in a library written in Rust becomes, which is no Exception.
PANIC = "PanicException"


@contextmanager
def reporting(
    debug: bool, describe: Callable[[Exception], str] | None = None, is_told: bool = True
) -> Iterator[None]:
    """Turn an exception inside into the command's last words, and exit code 1.

    `describe` puts an error into words, `describe_error` if there is none. `is_told`: whether this
    process says it; another one of the same run may.
    """
    try:
        yield
        sys.stdout.flush()  # What cannot be written must not fail after the exit code is chosen.
    except BaseException as error:
        if not isinstance(error, Exception):
            if type(error).__name__ != PANIC:
                raise
            error = RuntimeError(f"panic of a library: {error}")
        if isinstance(error, BrokenPipeError) and has_no_reader(sys.stdout):
            leave_quietly()
        if is_told:
            tell(error, debug, describe or describe_error)
        sys.exit(1)


def prepare_screen(words: list[str]) -> None:
    """Before anything is printed: learn which secrets the command was given, and catch logs."""
    forget()
    learn_words(words)
    learn_environment(os.environ)
    logger = logging.getLogger("velocity")
    logger.handlers[:] = [LogLines()]
    threading.excepthook = tell_of_thread


def tell(error: Exception, debug: bool, describe: Callable[[Exception], str]) -> None:
    """Say why the command ends."""
    if debug:
        say_text("".join(traceback.format_exception(error)))
    say(f"velocity: {shorten(describe(error))}")
    if not debug:  # Tracebacks have them.
        for note in getattr(error, "__notes__", ()):
            say(shorten(note))


def shorten(text: str) -> str:
    """The words for an error as they may be shown: without secrets, and of a bounded length."""
    text = hide(text)  # Before it is cut: half a key is a key's half.
    rest = len(text) - MAX_CHARS
    return text[:MAX_CHARS] + (f"... ({rest:,} more characters)" if rest > 0 else "")


def tell_of_thread(ended: threading.ExceptHookArgs) -> None:
    """Say why a thread ended; the command itself goes on."""
    if isinstance(ended.exc_value, Exception):
        name = ended.thread.name if ended.thread else "a thread"
        say(f"velocity: {name}: {describe_error(ended.exc_value)}")


def describe_error(error: Exception) -> str:
    """The error in words, without its traceback.

    >>> describe_error(FileNotFoundError(2, "No such file or directory", "a.txt"))
    'a.txt: No such file or directory'
    >>> describe_error(KeyError("totals"))
    "unexpected KeyError: 'totals'; --debug shows where; please report it"
    """
    if isinstance(error, OSError) and error.strerror:
        name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
        parts = [f"{name}: {error.strerror}" if name else error.strerror]
        return "; ".join([*parts, *filter(None, [advise_writing(error)])])
    if isinstance(error, ValueError | OSError) and str(error):
        return str(error)
    words = " ".join(str(error).split())
    return (
        f"unexpected {type(error).__name__}{f': {words}' if words else ''}; "
        "--debug shows where; please report it"
    )


def naming_pipes(command: Callable[..., None]) -> Callable[..., None]:
    """Decorate a command so that Typer does not end it without a word when any pipe breaks."""

    @wraps(command)
    def checked(**values: Any) -> None:
        try:
            command(**values)
        except BrokenPipeError as error:
            if has_no_reader(sys.stdout):
                leave_quietly()
            raise ConnectionError(str(error)) from error

    return checked


def has_no_reader(stream: TextIO) -> bool:
    """Whether what reads a stream has ended, as `head` does; sockets of ours break as well."""
    with suppress(OSError, ValueError, AttributeError):  # Windows has no poll.
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    return False


def leave_quietly() -> NoReturn:
    """End as a program does whose output nobody reads any more."""
    # What is still buffered goes nowhere, instead of failing again when Python ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(128 + signal.SIGPIPE)

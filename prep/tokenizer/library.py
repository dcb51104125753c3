"""What the tokenizer libraries raise, as one line."""

from collections.abc import Iterator
from contextlib import contextmanager


class LibraryError(Exception):
    """What a library could not do, in its own words."""


@contextmanager
def catching() -> Iterator[None]:
    """Turn whatever a library raises inside into a LibraryError.

    `tokenizers` raises bare Exceptions for any fault, and a panic of either is no Exception at all.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise LibraryError(f"{reason:.200}") from None

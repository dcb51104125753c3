"""Reads prompts from the command line, files or standard input: as text, or refused."""

import codecs
import os
import stat
import sys
from collections.abc import Callable

from model.decode.settings import LONE_SURROGATES
from model.sample.options import Prompts

STANDARD_INPUT = "-"
# What a file in one of these begins with, the longer marks first.
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def read_prompts(source: Prompts, say: Callable[[str], None]) -> list[str]:
    """Prompts given directly, as one whole file, and as the lines of a file; "-" reads stdin.

    Of a file, the end of its last line is left out. Without any prompt there is one, and it is
    empty: the beginning of a document. What could not be taken as it is, is told through `say`.
    """
    found = list(source.prompt)
    for prompt in found:
        if LONE_SURROGATES.search(prompt):
            say("velocity: a --prompt holds bytes that are not UTF-8; each is taken as U+FFFD")
    if source.prompt_file == source.prompt_lines == STANDARD_INPUT:
        raise ValueError(
            "--prompt-file - and --prompt-lines - both read standard input; name a file for one"
        )
    if source.prompt_file is not None:
        found.append(read_text(source.prompt_file).removesuffix("\n").removesuffix("\r"))
    if source.prompt_lines is not None:
        lines = cut_lines(read_text(source.prompt_lines))
        if not lines:
            raise ValueError(f"{source.prompt_lines}: no prompts in it; expected one on each line")
        found += lines
    return found or [""]


def read_text(path: str) -> str:
    """A file's text, or standard input's, without its byte order mark; ValueError if it is none."""
    if path == STANDARD_INPUT:
        return decode_text(sys.stdin.buffer.read(), "standard input")
    with open(path, "rb") as file:
        if stat.S_ISCHR(os.fstat(file.fileno()).st_mode) and not file.isatty():
            raise ValueError(f"{path}: is a device, which may never end; expected a file of text")
        return decode_text(file.read(), path)


def decode_text(data: bytes, name: str) -> str:
    """The text of bytes in UTF-8, or in UTF-16 or UTF-32 with a mark; errors call it `name`."""
    mark, encoding = next((m for m in MARKS if data.startswith(m[0])), (b"", "utf-8"))
    if not mark and _looks_like_utf16(data):
        raise ValueError(
            f"{name}: is in UTF-16 or UTF-32 without a byte order mark; convert it to UTF-8 with "
            "iconv"
        )
    try:
        return data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        place = len(mark) + error.start
        line = data[len(mark) : place].decode(encoding, "replace").count("\n") + 1
        raise ValueError(
            f"{name}: byte {place:,}, on line {line:,}, is 0x{data[place]:02x}, which is not "
            f"{encoding.upper()}; convert the file to UTF-8 with iconv"
        ) from None


def cut_lines(text: str) -> list[str]:
    r"""The lines of a text, which end with \n or \r\n and nowhere else; empty ones count.

    >>> cut_lines("one\u2028still one\r\n\nthree")
    ['one\u2028still one', '', 'three']
    """
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()  # The last line is ended as well.
    return [line.removesuffix("\r") for line in lines]


def _looks_like_utf16(data: bytes) -> bool:
    """Whether a quarter of the bytes at even or at odd places are 0, as in text of few scripts."""
    return any(
        data[first::2].count(0) * 4 > len(data[first::2]) for first in (0, 1) if data[first::2]
    )

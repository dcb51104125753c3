"""Reads prompts from the command line, files or standard input, and writes the generated texts."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from model.decode.draft import Completion
from model.decode.generator import LONE_SURROGATES, Generator
from model.decode.settings import Prompts, Settings
from model.decode.text_stream import REPLACEMENT

STANDARD_INPUT = "-"


def read_prompts(source: Prompts) -> list[str]:
    """Prompts given directly, as one whole file, and as the lines of a file; "-" reads stdin.

    Without any, there is one empty prompt: the beginning of a document.
    """
    found = list(source.prompt)
    if source.prompt_file is not None:
        found.append(read_text(source.prompt_file).removesuffix("\n"))
    if source.prompt_lines is not None:
        found += [line for line in read_text(source.prompt_lines).splitlines() if line]
        if not found:
            raise ValueError(f"{source.prompt_lines}: no prompts in it; expected one on each line")
    return found or [""]


def read_text(path: str) -> str:
    """A file's text, or standard input's."""
    data = sys.stdin.buffer.read() if path == STANDARD_INPUT else Path(path).read_bytes()
    return data.decode("utf-8", errors="replace")


def write_texts(
    generator: Generator,
    prompts: Sequence[str],
    settings: Settings,
    out: TextIO,
    streams: bool = True,
) -> None:
    """Write the texts that continue the prompts, the prompts included.

    A single text appears as it is generated; several appear, each under a heading, once all are
    done.
    """
    num_texts = len(prompts) * settings.num_return_sequences
    if num_texts == 1 and streams:
        pieces = generator.stream(prompts[0], settings)
        out.write(LONE_SURROGATES.sub(REPLACEMENT, prompts[0]))
        for piece in pieces:
            out.write(piece)
            out.flush()
        out.write("\n")
        return
    completions = generator.complete(prompts, settings)
    for number, completion in enumerate(completions):
        if num_texts > 1:
            out.write(describe_place(number, settings.num_return_sequences, completion) + "\n")
        out.write(completion.text + "\n")


def describe_place(number: int, num_samples: int, completion: Completion) -> str:
    """The heading above one of several texts.

    >>> describe_place(3, 2, Completion("", (1, 2, 3), 1, "length"))
    '--- prompt 2, sample 2: 2 tokens, ended by length ---'
    """
    prompt, sample = divmod(number, num_samples)
    num_tokens = len(completion.tokens) - completion.num_prompt_tokens
    reason = completion.finish_reason.replace("_", " ")
    return (
        f"--- prompt {prompt + 1}, sample {sample + 1}: {num_tokens} tokens, ended by {reason} ---"
    )

"""What takes turns in `benchmarks.sample`: ours, transformers, llama.cpp, and memory alone."""

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import OURS, Engine, Figures, Measured
from benchmarks.models import count_bytes, count_gguf_bytes
from benchmarks.sample.llama import Llama
from model.config import Kept
from model.decode.generator import Generator
from model.decode.settings import Settings
from model.export.gguf.writer import write as write_gguf
from model.export.source import open_source
from model.generate import load_generator
from model.pages import Pages
from model.products import linear
from prep.tokenizer.gpt2 import END_OF_TEXT

# Each is one token with the space before it.
WORDS = ("the", "of", "and", "to", "in", "a", "is", "that", "for", "it", "as", "was", "with", "be")
# transformers' two kinds of cache that hold all tokens.
CACHES = {"transformers": None, "transformers_static": "static"}
# llama.cpp's engines, and what its file holds.
LLAMA = {"llama_cpp": "fp32", "llama_cpp_q8_0": "q8_0"}
READ_BYTES = 2**28
READ = "gigabytes_read_per_second"
# A row of ids for each prompt, starting with the prompt's own.
Rows = list[list[int]]


def list_engines(
    folder: Path, generator: Generator, options: argparse.Namespace
) -> Iterator[Engine]:
    """What takes turns: ours in every dtype, transformers' with each cache, llama.cpp's."""

    def start_kept(kept: Kept) -> Callable[[], Measured]:
        return start_velocity(load_generator(folder, options.device, dtype=kept), options)

    yield Engine("read", (), lambda: time_reading)
    yield Engine(OURS, (), partial(start_velocity, generator, options))
    for kept in options.dtypes:
        yield Engine(f"{OURS}_{kept}", (), partial(start_kept, kept))
    for name, kind in CACHES.items():
        start = partial(start_transformers, folder, generator, options, kind)
        yield Engine(name, ("transformers",), start)
    packages = ("gguf",) if options.llama_python else ("gguf", "llama-cpp-python")
    for name, held in LLAMA.items() if options.device == "cpu" else ():
        yield Engine(name, packages, partial(start_llama, folder, generator, options, held))


def make_prompts(batch_size: int, options: argparse.Namespace) -> list[str]:
    """Different prompts; those of a small batch are also in a large one."""
    draw, shortest = random.Random(options.seed), max(1, options.prompt_tokens // 4)
    lengths = [options.prompt_tokens] * batch_size
    if options.unequal:
        # The first is the longest, so that the others are padded to it.
        lengths[1:] = [draw.randint(shortest, options.prompt_tokens) for _ in lengths[1:]]
    return ["".join(f" {word}" for word in draw.choices(WORDS, k=k)) for k in lengths]


def start_velocity(generator: Generator, options: argparse.Namespace) -> Callable[[], Measured]:
    """Our generator."""

    def write(batch_size: int, num_new: int) -> Rows:
        settings = Settings(do_sample=False, max_new_tokens=num_new, batch_size=batch_size)
        completions = generator.complete(make_prompts(batch_size, options), settings)
        return [list(text.tokens[text.num_prompt_tokens :]) for text in completions]

    sizes, num_bytes = options.batch_sizes, count_bytes(generator.model)
    return partial(time_writing, write, sizes, options.new_tokens, num_bytes)


def start_transformers(
    folder: Path, generator: Generator, options: argparse.Namespace, cache: str | None
) -> Callable[[], Measured]:
    """transformers' model from the same folder, on our device and in our dtype."""
    from transformers import AutoModelForCausalLM

    weight = generator.model.lm_head.weight
    llama: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=weight.dtype)
    llama.to(weight.device)

    def write(batch_size: int, num_new: int) -> Rows:
        encodings = generator.tokenizer.encode_batch(make_prompts(batch_size, options))
        longest = max(len(encoding.ids) for encoding in encodings)
        for encoding in encodings:
            encoding.pad(longest, direction="left", pad_id=END_OF_TEXT)
        rows = llama.generate(
            torch.tensor([encoding.ids for encoding in encodings], device=weight.device),
            attention_mask=torch.tensor(
                [encoding.attention_mask for encoding in encodings], device=weight.device
            ),
            do_sample=False,
            max_new_tokens=num_new,
            pad_token_id=END_OF_TEXT,
            cache_implementation=cache,
        )
        return [end_row(row[longest:]) for row in rows.tolist()]

    num_bytes = sum(p.nbytes for p in llama.parameters())
    return partial(time_writing, write, options.batch_sizes, options.new_tokens, num_bytes)


def start_llama(
    folder: Path, generator: Generator, options: argparse.Namespace, dtype: str
) -> Callable[[], Measured]:
    """llama.cpp on a file of the checkpoint's, with as many threads as torch."""
    path = write_gguf(open_source(folder), folder.parent, f"{dtype}.gguf", dtype)
    llama = Llama(options.llama_python or Path(sys.executable), path, torch.get_num_threads())

    def write(batch_size: int, num_new: int) -> Rows:
        encodings = generator.tokenizer.encode_batch(make_prompts(batch_size, options))
        return [end_row(llama.write(encoding.ids, num_new)) for encoding in encodings]

    return partial(time_writing, write, [1], options.new_tokens, count_gguf_bytes(path))


def end_row(row: list[int]) -> list[int]:
    """New tokens without the padding after <|endoftext|>."""
    return row[: row.index(END_OF_TEXT) + 1] if END_OF_TEXT in row else row


def time_writing(
    write: Callable[[int, int], Rows], batch_sizes: Sequence[int], num_new: int, num_bytes: int
) -> Measured:
    """Write at each batch size; returns figures, and the rows of new tokens.

    The bytes of the weights are read once for each step of all rows.
    """
    figures: Figures = {}
    written: Rows = []
    for batch_size in batch_sizes:
        started = time.perf_counter()
        write(batch_size, 1)
        figures[f"first_text_per_second_at_batch_{batch_size}"] = 1 / since(started)
        started = time.perf_counter()
        rows = write(batch_size, num_new)
        seconds = since(started)
        figures[f"tokens_per_second_at_batch_{batch_size}"] = sum(map(len, rows)) / seconds
        if batch_size == 1:
            figures[READ] = len(rows[0]) * num_bytes / seconds / 1e9
        written += rows
    return Measured(figures, written)


def since(started: float) -> float:
    """Seconds from then to now."""
    return time.perf_counter() - started


def time_reading() -> Measured:
    """How fast numbers are read: as a sum and in a product with a vector, the faster of both.

    From huge pages, where there are some, as our weights are.
    """
    matrix = Pages().empty((READ_BYTES // 4 // 4096, 4096), torch.float32).fill_(1)
    vector, seconds = torch.ones(1, 4096), []
    with torch.inference_mode():
        for read in (matrix.sum, lambda: linear(vector, matrix)) * 3:
            started = time.perf_counter()
            read()
            seconds.append(since(started))
    return Measured({READ: READ_BYTES / min(seconds) / 1e9}, None)

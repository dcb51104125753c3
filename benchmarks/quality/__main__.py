"""What rounding weights costs: the loss on real text, and the tokens of greedy texts.

A trained checkpoint is read with each `--dtype` of `velocity sample`, and from the files that
`velocity export` makes of it. Each is compared with fp32 on the same windows of the set's
validation split, which the run did not read: losses are paired, window by window, and their
standard error is that of the differences. Then each goes on with the same beginnings of windows by
itself, to see how far its greedy texts are fp32's.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import Json, count_equal, find_missing, print_line, run_script, say, shorten
from benchmarks.models import count_bytes, count_gguf_bytes
from model.checkpoints.seal import seal
from model.config import KEPT, Kept
from model.decode.generator import Generator
from model.decode.settings import Settings
from model.export import int8
from model.export.certificate import Measured, measure
from model.export.gguf.runtime import read_model
from model.export.gguf.writer import write as write_gguf
from model.export.source import Source, open_source
from model.generate import load_generator
from shards.reader import open_shards

PACKAGES = ("torch", "gguf", "numpy")
FP32 = "fp32"


@dataclass(frozen=True)
class Loaded:
    """A checkpoint in one of its forms."""

    generator: Generator
    # Of its weights: in memory, or of an export on the disk.
    num_bytes: int


@dataclass(frozen=True)
class Form:
    """One way to keep the weights."""

    name: str
    load: Callable[[], Loaded]
    packages: tuple[str, ...] = ()


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="What rounding weights costs: loss on held-out text, and greedy tokens.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--ckpt", type=Path, required=True, help="a trained checkpoint")
    parser.add_argument("--shards", type=Path, required=True, help="the set it was trained on")
    parser.add_argument("--windows", type=int, default=64, help="of validation text, at most")
    parser.add_argument("--window-tokens", type=int, default=512, help="at most the context")
    parser.add_argument("--texts", type=int, default=32, help="that go on by themselves")
    parser.add_argument("--prompt-tokens", type=int, default=64, help="of each text")
    parser.add_argument("--new-tokens", type=int, default=128, help="of each text, at most")
    kept = [name for name in KEPT if name != FP32]
    parser.add_argument("--dtypes", nargs="*", choices=KEPT, default=kept, help="of sampling")
    parser.add_argument("--gguf", nargs="*", default=["q8_0", "q5_0", "q4_0"], help="dtypes")
    return parser.parse_args()


def main() -> None:
    """Compare every form with fp32, print the line."""
    options = parse_arguments()
    source = open_source(options.ckpt)
    windows = read_windows(options, source.config.context)
    reference = load_kept(source.folder, FP32)
    prompts = [window[: options.prompt_tokens].tolist() for window in windows[: options.texts]]
    expected = write_on(reference.generator, prompts, options.new_tokens)
    rows: list[Json] = []
    left_out: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="benchmark-quality-") as scratch:
        for form in list_forms(source, Path(scratch), options):
            missing = find_missing(form.packages)
            if missing:
                left_out[form.name] = missing
                continue
            loaded = form.load()
            found = write_on(loaded.generator, prompts, options.new_tokens)
            measured = [
                measure(partial(compute, reference), partial(compute, loaded), [window[None]])
                for window in windows
            ]
            row = {"weights": form.name, "bytes": loaded.num_bytes}
            row |= summarize_windows(measured) | summarize_texts(expected, found)
            say(f"{form.name}: {row}")
            rows.append(row)
    work = {
        "num_parameters": source.config.num_parameters(),
        "fp32_bytes": reference.num_bytes,
        "windows": len(windows),
        "window_tokens": len(windows[0]),
        "texts": len(prompts),
    }
    print_line("quality", options, {"work": work, "table": rows, "left_out": left_out}, PACKAGES)


def read_windows(options: argparse.Namespace, context: int) -> Tensor:
    """Windows (N, T) of the validation split that do not overlap, evenly spread over it."""
    stream = open_shards(options.shards).stream("validation")
    size = min(options.window_tokens, context)
    places = np.arange(stream.num_tokens // size) * size
    if not len(places):
        raise ValueError(
            f"{options.shards}: the validation split has {stream.num_tokens:,} tokens; expected at "
            f"least {size:,}: make a set with a larger --validation-fraction"
        )
    step = max(1, len(places) // options.windows)
    windows = stream.windows(places[::step][: options.windows], size)
    return torch.from_numpy(windows.astype(np.int64))


def list_forms(source: Source, scratch: Path, options: argparse.Namespace) -> Iterator[Form]:
    """The dtypes of sampling, and the exports with fewer bits."""
    for name in options.dtypes:
        yield Form(name, partial(load_kept, source.folder, name))
    yield Form("int8 export", partial(export_int8, source, scratch))
    for name in options.gguf:
        yield Form(f"gguf {name}", partial(export_gguf, source, scratch, name), ("gguf",))


def load_kept(folder: Path, kept: Kept) -> Loaded:
    """The checkpoint as sampling reads it with this --dtype."""
    generator = load_generator(folder, "cpu", dtype=kept)
    return Loaded(generator, count_bytes(generator.model))


def export_int8(source: Source, scratch: Path) -> Loaded:
    """The folder of `velocity export --format int8`, as sampling reads it."""
    folder = scratch / "int8"
    folder.mkdir()
    int8.write(source, folder, folder.name, "int8")
    seal(folder)
    return Loaded(load_generator(folder, "cpu"), (folder / "model.safetensors").stat().st_size)


def export_gguf(source: Source, scratch: Path, dtype: str) -> Loaded:
    """The file of `velocity export --format gguf`, widened by `gguf` into our forward pass."""
    path = write_gguf(source, scratch, f"{dtype}.gguf", dtype)
    model = read_model(path).model
    generator = Generator(model, source.tokenizer, source.ends, source.begin)
    return Loaded(generator, count_gguf_bytes(path))


@torch.inference_mode()
def compute(loaded: Loaded, tokens: Tensor) -> Tensor:
    """The logits (1, T, V) of tokens (1, T)."""
    generator = loaded.generator
    logits: Tensor = generator.model(tokens)
    return logits[..., : generator.num_words].float()


def write_on(generator: Generator, prompts: list[list[int]], num_new: int) -> list[list[int]]:
    """The greedy tokens after each prompt."""
    settings = Settings(do_sample=False, max_new_tokens=num_new, batch_size=16)
    texts = generator.complete(prompts, settings)
    return [list(text.tokens[text.num_prompt_tokens :]) for text in texts]


def summarize_windows(measured: Sequence[Measured]) -> Json:
    """Means over windows, each with the standard error of the mean."""
    return {
        "loss": estimate([window.loss + window.loss_change for window in measured]),
        "loss_change": estimate([window.loss_change for window in measured]),
        "kl": estimate([window.kl for window in measured]),
        "agreement": estimate([window.agreement for window in measured]),
    }


def estimate(values: Sequence[float]) -> Json:
    """The mean of independent values, and its standard error.

    >>> estimate([1.0, 2.0, 3.0])
    {'mean': 2.0, 'standard_error': 0.57735}
    """
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return {"mean": shorten(statistics.mean(values)), "standard_error": shorten(error)}


def summarize_texts(expected: list[list[int]], found: list[list[int]]) -> Json:
    """How many tokens texts begin with alike, and how many of the texts are wholly equal.

    >>> summarize_texts([[1, 2, 3], [1, 2]], [[1, 2, 4], [1, 2]])
    {'mean_equal_tokens': 2.0, 'texts_equal': 1, 'mean_text_tokens': 2.5}
    """
    pairs = [*zip(expected, found, strict=True)]
    return {
        "mean_equal_tokens": shorten(statistics.mean(count_equal(*pair) for pair in pairs)),
        "texts_equal": sum(mine == other for mine, other in pairs),
        "mean_text_tokens": shorten(statistics.mean(map(len, expected))),
    }


if __name__ == "__main__":
    run_script(main)

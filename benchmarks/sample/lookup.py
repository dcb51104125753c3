"""`--prompt-lookup`: greedy texts with guesses against the same texts without.

Three kinds of text: a file of source code that is gone on with, a document that is quoted at the
end of its own text, and plain prose. Each is written twice. A trained checkpoint writes what it
will: its texts must be equal, and how much they repeat themselves is its own. Then a larger model
with random weights takes the real text's next token at every place, as a model would that knew it:
so much is there to guess in code and documents, at what a step of such a model costs. What is
timed begins after the first token; prompts are read as ever.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from benchmarks.measure import (
    OURS,
    Engine,
    Figures,
    Json,
    Measured,
    make_parser,
    print_line,
    run_script,
    summarize,
    take_turns,
)
from benchmarks.models import add_size_options, make_model_config, write_checkpoint
from benchmarks.trained import CODE_FILE
from model.cache import KVCache
from model.decode.batch import Batch
from model.decode.generator import Generator
from model.decode.predictor import Predictor
from model.decode.settings import Settings
from model.generate import load_generator
from shards.documents import Sidecars
from shards.reader import open_shards
from shards.tokenizer import load_tokenizer

PACKAGES = ("torch", "tokenizers", "numpy")
KINDS = ("code", "quotes", "prose")
WITHOUT = "without_lookup"
# A logit above all others.
CERTAIN = 1e6
# Ours, which no run has read.
CODE = Path(__file__).parents[2] / "model"


@dataclass(frozen=True)
class Case:
    """A text to write: what stands before it, and how it goes on in truth."""

    kind: str
    prompt: list[int]
    goes_on: list[int]


class Dictated(Predictor):
    """A model that always takes the real text's next token, after computing as ever."""

    text: Sequence[int] = ()

    def predict(
        self, tokens: Sequence[Sequence[int]], cache: KVCache, places: Sequence[int] | None = None
    ) -> Tensor:
        """The logits of `Predictor`, with the real next token far above the others."""
        first = cache.lengths[0] + 1
        logits = super().predict(tokens, cache, places).clone()
        for row, place in enumerate([len(tokens[0]) - 1] if places is None else places):
            logits[row, self.text[min(first + place, len(self.text) - 1)]] = CERTAIN
        return logits


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = make_parser("Guessing tokens from the text so far: the same texts, and how fast.")
    parser.add_argument("--ckpt", type=Path, required=True, help="a trained checkpoint")
    parser.add_argument("--shards", type=Path, required=True, help="the set it was trained on")
    parser.add_argument("--texts", type=int, default=4, help="of each kind")
    parser.add_argument("--prompt-tokens", type=int, default=256, help="of each text")
    parser.add_argument("--quoted-tokens", type=int, default=24, help="that begin a quote")
    parser.add_argument("--new-tokens", type=int, default=96, help="of each text, at most")
    parser.add_argument("--guesses", type=int, default=5, help="tokens guessed at a time")
    add_size_options(parser)
    parser.add_argument("--dtype", default="fp32", help="of both models")
    parser.add_argument("--threads", type=int, help="of torch; else as many as it takes")
    return parser.parse_args()


def main() -> None:
    """Measure both models, compare the tokens, print the line."""
    options = parse_arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    trained = load_generator(options.ckpt, "cpu", dtype=options.dtype)
    texts = read_texts(options.shards)
    found: Json = {"written": measure(trained, texts, options)}
    with tempfile.TemporaryDirectory(prefix="benchmark-lookup-") as name:
        dictated = load_dictated(Path(name), options)
        found["dictated"] = measure(dictated, texts, options)
    work = {
        "trained_parameters": trained.model.config.num_parameters(),
        "dictated_parameters": dictated.model.config.num_parameters(),
        "texts": options.texts,
        "tokens_counted": "all but the first of each text, whose time is that of the prompt",
    }
    checks = {"tokens_equal": True}  # Otherwise there are no figures.
    print_line("sample.lookup", options, {"work": work, **found, "checks": checks}, PACKAGES)


def read_texts(shards: Path) -> dict[str, list[str]]:
    """Texts that no run has read: our own source, and the validation documents of the set."""
    found = open_shards(shards)
    tokenizer = load_tokenizer(shards / "tokenizer.json")
    sidecars = Sidecars(found, "validation")
    documents = sidecars.between(0, sidecars.stream.num_tokens)
    prose = [
        tokenizer.decode(sidecars.stream.read(document.start, document.num_tokens - 1).tolist())
        for document in documents
        # Those of `benchmarks.trained` that are no prose.
        if Path(document.source_file).name != CODE_FILE
    ]
    code = [path.read_text(encoding="utf-8") for path in sorted(CODE.rglob("*.py"))]
    return {"code": code, "quotes": prose, "prose": prose}


def make_cases(
    texts: Mapping[str, Sequence[str]], tokenizer: Tokenizer, options: argparse.Namespace
) -> Iterator[Case]:
    """The first texts of each kind that are long enough."""
    num_prompt, num_new = options.prompt_tokens, options.new_tokens
    break_ids = tokenizer.encode("\n\n").ids
    for kind in KINDS:
        num_cases = 0
        for text in texts[kind]:
            ids = tokenizer.encode(text).ids
            prompt, goes_on = ids[:num_prompt], ids[num_prompt:]
            if kind == "quotes":
                quoted = options.quoted_tokens
                prompt, goes_on = prompt + break_ids + prompt[:quoted], prompt[quoted:]
            if len(goes_on) >= num_new and num_cases < options.texts:
                num_cases += 1
                yield Case(kind, prompt, goes_on[:num_new])
        if num_cases < options.texts:
            raise ValueError(
                f"{kind}: {num_cases} of {options.texts} texts are long enough for "
                f"{num_prompt} and {num_new} tokens; ask for fewer, or for shorter ones"
            )


def load_dictated(folder: Path, options: argparse.Namespace) -> Generator:
    """A generator of random weights that is told what to write."""
    context = 2 * (options.prompt_tokens + options.new_tokens)
    write_checkpoint(folder, make_model_config(options, max_position_embeddings=context))
    loaded = load_generator(folder, "cpu", dtype=options.dtype)
    dictated = Generator(loaded.model, loaded.tokenizer, predictor=Dictated)
    dictated.predictor.step = loaded.predictor.step
    return dictated


def measure(
    generator: Generator, texts: Mapping[str, Sequence[str]], options: argparse.Namespace
) -> Json:
    """The figures of one model with guesses and without, in turn."""
    cases = [*make_cases(texts, generator.tokenizer, options)]
    plain = Settings(do_sample=False, max_new_tokens=options.new_tokens)
    guessing = replace(plain, prompt_lookup_num_tokens=options.guesses)
    engines = [
        Engine(OURS, (), lambda: partial(write_all, generator, cases, guessing)),
        Engine(WITHOUT, (), lambda: partial(write_all, generator, cases, plain)),
    ]
    return summarize(take_turns(engines, options, check_tokens))


def check_tokens(outputs: Mapping[str, list[list[int]]]) -> None:
    """ValueError if a text is another one without guesses."""
    for number, (mine, other) in enumerate(zip(outputs[OURS], outputs[WITHOUT], strict=True)):
        if mine != other:
            raise ValueError(
                f"text {number} has other tokens with guesses, so there are no figures"
            )


def write_all(generator: Generator, cases: Sequence[Case], settings: Settings) -> Measured:
    """Write every case alone; returns rates by kind, and the new tokens."""
    figures: Figures = {}
    written: list[list[int]] = []
    for kind in KINDS:
        num_tokens = num_steps = 0
        seconds = 0.0
        for case in (case for case in cases if case.kind == kind):
            if isinstance(generator.predictor, Dictated):
                generator.predictor.text = [*case.prompt, *case.goes_on]
            tokens, steps, taken = write_text(generator, case.prompt, settings)
            if isinstance(generator.predictor, Dictated):
                assert tokens == case.goes_on
            written.append(tokens)
            num_tokens += len(tokens) - 1
            num_steps += steps
            seconds += taken
        figures[f"{kind}_tokens_per_second"] = num_tokens / seconds
        figures[f"{kind}_tokens_per_step"] = num_tokens / num_steps
    return Measured(figures, written)


def write_text(
    generator: Generator, prompt: list[int], settings: Settings
) -> tuple[list[int], int, float]:
    """The new tokens of one text; in how many steps, and seconds, those after the first came."""
    [draft] = generator.start([prompt], settings)
    batch = Batch(generator.predictor)
    batch.join([draft])
    while len(draft.tokens) == draft.num_prompt_tokens:
        batch.step()
    steps, started = 0, time.perf_counter()
    while len(batch):
        batch.step()
        steps += 1
    return draft.tokens[draft.num_prompt_tokens :], steps, time.perf_counter() - started


if __name__ == "__main__":
    run_script(main)

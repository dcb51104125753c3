"""The same prompts over all checkpoints of a run: what it wrote at each step."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from model.checkpoints.seal import CheckpointError, list_checkpoints, step_of
from model.decode.generator import Generator
from model.decode.settings import Settings
from model.sample.console import Show, describe_end
from model.sample.json_lines import write_json


def write_over_run(
    run: Path,
    load: Callable[[Path], Generator],
    prompts: Sequence[str],
    settings: Settings,
    show: Show,
    say: Show,
    continuation: str | None = None,
    as_json: bool = False,
) -> None:
    """Write the texts of every complete checkpoint in a folder, each under its step, oldest first.

    With a `continuation`, also how likely it is after each prompt.
    """
    for generator in load_each(run, load, say):
        for prompt in prompts:
            scored = {}
            if continuation is not None:
                scored = score_continuation(generator, prompt, continuation)
            if as_json:
                write_json(generator, [prompt], settings, show, **scored)
            else:
                _write_step(generator, prompt, settings, show, scored.get("continuation_logprob"))
        del generator  # Never two models in memory.


def load_each(run: Path, load: Callable[[Path], Generator], say: Show) -> Iterator[Generator]:
    """The generators of every complete checkpoint in a folder, oldest first, one after another.

    One that cannot be loaded is said and passed over; CheckpointError if none can. Each is let go
    here before the next is loaded, and whoever takes it has to let it go, too.
    """
    num_loaded = 0
    for folder in reversed(list_checkpoints(run)):
        try:
            generator = load(folder)
        except CheckpointError as error:
            say(f"velocity: {error}; skipping {folder.name}")
            continue
        num_loaded += 1
        yield generator
        del generator
    if not num_loaded:
        raise CheckpointError(
            f"{run}: no complete checkpoint to load; expected a folder of checkpoint-<step> folders"
        )


def _write_step(
    generator: Generator, prompt: str, settings: Settings, show: Show, likely: object
) -> None:
    """Write the texts of one prompt and checkpoint, with how likely each is to the model itself."""
    assert generator.folder is not None
    step = step_of(generator.folder)
    for completion in generator.complete([prompt], replace(settings, logprobs=0)):
        total = sum(found.logprob or 0.0 for found in completion.logprobs or ())
        says = f"log-probability {total:.2f}"
        if likely is not None:
            says += f", of the continuation {likely:.2f}"
        show(f"--- step {step:,}: {describe_end(completion)}, {says} ---\n{completion.text}\n")


def score_continuation(generator: Generator, prompt: str, continuation: str) -> dict[str, object]:
    """The log-probability of a text after a prompt: the sum over its tokens, and how many they are.

    Tokens count from where those of both together leave those of the prompt alone.
    """
    before = generator.tokenizer.encode(prompt).ids
    whole = generator.tokenizer.encode(prompt + continuation).ids
    same = [a == b for a, b in zip(before, whole, strict=False)]
    start = same.index(False) if False in same else len(same)
    if not start:  # A model is given what begins a document.
        whole, start = [generator.begin, *whole], 1
    scored = generator.score(whole)[start:]
    return {
        "continuation": continuation,
        "continuation_logprob": sum(found.logprob or 0.0 for found in scored),
        "continuation_tokens": [found.token for found in scored],
    }

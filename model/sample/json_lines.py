"""Generated texts as JSON, one object a line, and what is needed to write them again."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from model.checkpoints.hugging_face import Json
from model.checkpoints.seal import hash_weights, is_sealed, read_seal, step_of
from model.decode.draft import Completion
from model.decode.generator import Generator
from model.decode.logprobs import TokenLogprob
from model.decode.settings import LONE_SURROGATES, Settings
from model.decode.text_stream import REPLACEMENT

# Settings that say nothing about a text.
UNTOLD = ("seed", "batch_size")


def write_json(
    generator: Generator,
    prompts: Sequence[str],
    settings: Settings,
    show: Callable[[str], None],
    **more: object,
) -> None:
    """Write a line for each text that continues the prompts; `more` is told in every line."""
    for number, completion in enumerate(generator.complete(prompts, settings)):
        prompt, sample = divmod(number, settings.num_return_sequences)
        values = describe_text(generator, prompts[prompt], completion, settings)
        show(json.dumps({**values, "sample": sample, **more}) + "\n")  # ASCII, for any terminal.


def describe_text(
    generator: Generator, prompt: str, completion: Completion, settings: Settings
) -> Json:
    """A text that a checkpoint wrote, and what is needed to write it again.

    `text` is the whole text, the prompt included, and `tokens` its ids.
    """
    values: Json = {
        "prompt": LONE_SURROGATES.sub(REPLACEMENT, prompt),
        "text": completion.text,
        "tokens": completion.tokens,
        "num_prompt_tokens": completion.num_prompt_tokens,
        "finish_reason": completion.finish_reason,
        "seed": settings.seed,
        "dtype": generator.dtype,
        "settings": {k: v for k, v in asdict(settings).items() if k not in UNTOLD},
        "checkpoint": None if generator.folder is None else describe_checkpoint(generator.folder),
    }
    if completion.score is not None:
        values["score"] = completion.score
    if completion.logprobs is not None:
        values["logprobs"] = [spell_logprob(generator, found) for found in completion.logprobs]
    return values


def describe_checkpoint(folder: Path) -> Json:
    """Which weights wrote a text: their folder, the step of their run, and their sha256.

    The sha256 is the seal's, against which they were checked as they were read; `hash_weights` says
    what it is of several files. None for a folder without a seal.
    """
    sealed = read_seal(folder) if is_sealed(folder) else {}
    return {"folder": str(folder), "step": step_of(folder), "sha256": hash_weights(sealed)}


def spell_logprob(generator: Generator, found: TokenLogprob) -> Json:
    """A token, its log-probability, and what could have been in its place, with their texts."""
    return {
        "token": found.token,
        "text": spell(generator, found.token),
        "logprob": found.logprob,
        "alternatives": [
            {"token": token, "text": spell(generator, token), "logprob": logprob}
            for token, logprob in found.alternatives
        ],
    }


def spell(generator: Generator, token: int) -> str:
    """What a token alone decodes to; a piece of a character is U+FFFD."""
    text: str = generator.tokenizer.decode([token], skip_special_tokens=False)
    return text

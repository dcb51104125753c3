"""Texts that a run wrote while it was trained, as its log keeps them: samples.jsonl.

Each line has `step`, `prompt`, `text` (what was written after the prompt) and `seed`.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class Sample:
    """A text, without its prompt, and the seed that it was drawn with."""

    prompt: str
    text: str
    seed: int


def make_lines(step: int, samples: Sequence[Sample]) -> bytes:
    """The lines of samples.jsonl for the texts written after `step` steps."""
    records = [{"step": step, **asdict(sample)} for sample in samples]
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def name_texts(samples: Sequence[Sample]) -> dict[str, str]:
    """The texts by their names in TensorBoard, as blocks of code, which it shows as they are."""
    texts = [sample.prompt + sample.text for sample in samples]
    return {
        f"samples/{number}": "\n".join(f"    {line}" for line in text.split("\n"))
        for number, text in enumerate(texts, start=1)
    }


def describe_samples(samples: Sequence[Sample]) -> str:
    """The beginning of the last one, for the screen.

    >>> describe_samples([Sample("Once", " upon a time", 1)])
    'wrote "Once upon a time"'
    """
    text = samples[-1].prompt + samples[-1].text
    more = "..." if len(text) > SHOWN_CHARACTERS else ""
    others = f", and {len(samples) - 1} more" if len(samples) > 1 else ""
    return f'wrote "{text[:SHOWN_CHARACTERS]}{more}"{others}'

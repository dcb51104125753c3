"""What `velocity prep` is asked for: its options, each with its help, default and check."""

from dataclasses import asdict, dataclass, field, fields
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal

import typer

from shards.disk.json_files import Json
from shards.part import Part

# How the names of source files end; prep/sources/documents.py reads them.
SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".txt")
# What turns text into ids, the fastest first.
ENCODERS = ("fastokens", "tokenizers")
ENGINES = ("local", "ray")


@dataclass(frozen=True)
class Policy:
    """The settings that decide which tokens come out, all of them part of the dataset_id."""

    text_column: Annotated[
        str, typer.Option(help="The column or JSON key that holds the text.")
    ] = "content"
    blank_line_documents: Annotated[
        bool, typer.Option(help="In .txt files, blank lines separate documents.")
    ] = False
    # By a hash of the text; a decimal number.
    validation_fraction: Annotated[
        str, typer.Option(help="Share of the documents that goes to validation.")
    ] = "0.001"
    shard_tokens: Annotated[
        int, typer.Option(help="Most tokens of a shard; a longer document stays whole.")
    ] = 1 << 28
    # In plan order; <|endoftext|> counts.
    max_documents: Annotated[int | None, typer.Option(help="Stop after so many documents.")] = None
    max_tokens: Annotated[int | None, typer.Option(help="Stop before so many tokens.")] = None
    unit_bytes: Annotated[
        int | None,
        typer.Option(help="Source bytes that a worker does at a time; default: by the total."),
    ] = None
    min_chars: Annotated[int | None, typer.Option(help="Drop documents with fewer characters.")] = (
        None
    )
    max_chars: Annotated[int | None, typer.Option(help="Drop documents with more characters.")] = (
        None
    )
    keep_url: Annotated[
        str | None, typer.Option(help="Keep only documents whose URL has this regular expression.")
    ] = None
    drop_url: Annotated[
        str | None, typer.Option(help="Drop documents whose URL has this regular expression.")
    ] = None
    where: Annotated[
        tuple[str, ...],
        typer.Option(
            help="Keep only documents with such a column, as in language=en or "
            "'language_score>=0.65'. May be given several times."
        ),
    ] = ()
    # By a hash of their names; a decimal number.
    sample: Annotated[
        str | None,
        typer.Option(help="Take this share of the source files, the same every time, as 0.01."),
    ] = None
    dedup: Annotated[
        str | None,
        typer.Option(
            help="exact: of documents with the same text keep only the first. --max-documents and "
            "--max-tokens count before copies go."
        ),
    ] = None

    def __post_init__(self) -> None:
        limits = ("shard_tokens", "max_documents", "max_tokens", "unit_bytes")
        for name in (*limits, "min_chars", "max_chars"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name_option(name)} is {value}; expected a number of at least 1")
        if self.dedup not in (None, "exact"):
            raise ValueError(f"--dedup is {self.dedup}; expected exact, or no such option")
        self.validation_threshold()
        parse_fraction(self.sample)

    @property
    def content(self) -> Json:
        """The options that are set: an option that is added later changes no older set's id."""
        return {key: value for key, value in asdict(self).items() if value not in (None, ())}

    def validation_threshold(self) -> int:
        """A document goes to validation if the first 64 bits of its hash are below this.

        >>> Policy(validation_fraction="0.5").validation_threshold() == 2**63
        True
        """
        try:
            fraction = Fraction(self.validation_fraction)
        except (ValueError, ZeroDivisionError):
            fraction = Fraction(-1)
        if not 0 <= fraction < 1:
            raise ValueError(
                f"--validation-fraction is {self.validation_fraction}; "
                "expected a number from 0 to less than 1, such as 0.001"
            )
        return int(fraction * 2**64)


@dataclass(frozen=True)
class Request:
    """What the user asked for. What is not in its policy changes no byte but where they come from.

    `out` is the folder in which the set is made.
    """

    out: Annotated[
        Path, typer.Option(help="The folder for the shards, or a URL: s3://bucket/prefix, gs://.")
    ]
    # Empty = take `dataset` from the Hub.
    inputs: Annotated[
        tuple[str, ...],
        typer.Option(
            "--input",
            help="Local text instead of the Hub's: a file, folder or glob of "
            f"{', '.join(SUFFIXES)}. May be given several times.",
        ),
    ] = ()
    dataset: Annotated[str, typer.Option(help="A dataset of the Hub.")] = "tiiuae/falcon-refinedweb"
    dataset_config: Annotated[
        str | None, typer.Option(help="The dataset's configuration, where it has several.")
    ] = None
    split: Annotated[str, typer.Option(help="The dataset's split.")] = "train"
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit; it is pinned to a commit.")
    ] = None
    policy: Policy = field(default_factory=Policy)
    encoder: Annotated[
        str | None,
        typer.Option(
            help="fastokens or tokenizers; default: the fastest installed. Changes no byte."
        ),
    ] = None
    # Units at a time; on a Ray cluster, a core is one of any of its machines.
    workers: Annotated[
        int | None, typer.Option(help="Processes; default: one a core. Changes no byte.")
    ] = None
    engine: Annotated[
        str, typer.Option(help="local, or ray: the machines of a Ray cluster. Changes no byte.")
    ] = "local"
    ray_address: Annotated[
        str | None,
        typer.Option(help="The cluster, as head:6379 or auto; default: RAY_ADDRESS, or a new one."),
    ] = None
    # The whole set; one part of its units; the end of all parts; or an addition to a finished set.
    task: Part | Literal["whole", "finish", "append"] = "whole"
    # A finished set that this one will be appended to: its documents come first for --dedup.
    after: Path | None = None
    # Where the set is sent, as it may be printed.
    url: str | None = None

    @property
    def part(self) -> Part | None:
        """The part of the units that this process does; None = all of them."""
        return self.task if isinstance(self.task, Part) else None

    @property
    def place(self) -> str:
        """The set's place as a command line names it, behind --out."""
        return f"{self.url} --staging {self.out}" if self.url else str(self.out)

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"--workers is {self.workers}; expected at least 1")
        if self.engine not in ENGINES:
            raise ValueError(f"--engine is {self.engine}; expected {' or '.join(ENGINES)}")
        if self.ray_address is not None and self.engine != "ray":
            raise ValueError("--ray-address is for --engine ray; give both, or none")
        if self.encoder not in (None, *ENCODERS):
            expected = " or ".join(ENCODERS)
            raise ValueError(f"--encoder is {self.encoder}; expected {expected}")
        if self.part is not None:
            self._check_part()
        if self.task == "finish":
            self._check_finish()

    def _check_part(self) -> None:
        if self.engine != "local":
            raise ValueError(f"--part and --engine {self.engine} both share the work; choose one")
        for name in ("max_documents", "max_tokens"):
            if getattr(self.policy, name) is not None:
                raise ValueError(
                    f"{name_option(name)} counts through all units in plan order, which no part "
                    "sees; leave it out with --part, or run without --part (--engine ray keeps it)"
                )

    def _check_finish(self) -> None:
        """Refuse choices that the parts have made already."""
        sources = ("inputs", "dataset", "dataset_config", "split", "revision")
        how = ("encoder", "engine", "ray_address")
        usual = {entry.name: entry.default for entry in fields(self)}
        chosen = [name for name in (*sources, *how) if getattr(self, name) != usual[name]]
        policy, default = vars(self.policy), vars(Policy())
        chosen += [name for name in default if policy[name] != default[name]]
        if chosen:
            raise ValueError(
                f"{', '.join(map(name_option, chosen))}: --finish takes the sources and options "
                "that the parts were run with; leave this out"
            )


def name_option(field: str) -> str:
    """How a field is called on the command line.

    >>> name_option("max_tokens"), name_option("inputs")
    ('--max-tokens', '--input')
    """
    return "--input" if field == "inputs" else f"--{field.replace('_', '-')}"


def parse_fraction(sample: str | None) -> Fraction:
    """The fraction that --sample names; 1 where it is not given.

    >>> parse_fraction("0.01")
    Fraction(1, 100)
    """
    try:
        fraction = Fraction(sample or 1)
    except (ValueError, ZeroDivisionError):
        fraction = Fraction(0)
    if not 0 < fraction <= 1:
        raise ValueError(
            f"--sample is {sample}; expected a number above 0 and up to 1, such as 0.01"
        )
    return fraction

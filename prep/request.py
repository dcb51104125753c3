"""What `velocity prep` was asked for."""

from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

from prep.text.filters import Filter
from shards.format import Json
from shards.part import Part

ENCODERS = ("fastokens", "tokenizers")


ENGINES = ("local", "ray")


@dataclass(frozen=True)
class Policy:
    """The settings that decide which tokens come out, all of them part of the dataset_id."""

    text_column: str = "content"
    # A .txt is one document, or one a block between blank lines.
    blank_line_documents: bool = False
    # Share of the documents, by a hash of their text, that goes to validation; a decimal number.
    validation_fraction: str = "0.001"
    # A shard is closed before the document that would make it longer than this.
    shard_tokens: int = 1 << 28
    # Stop after so many documents or tokens (<|endoftext|> included), in plan order.
    max_documents: int | None = None
    max_tokens: int | None = None
    # Source bytes a unit; None = chosen from the total.
    unit_bytes: int | None = None
    # Which documents are kept; prep/text/filters.py says how.
    min_chars: int | None = None
    max_chars: int | None = None
    keep_url: str | None = None
    drop_url: str | None = None
    where: tuple[str, ...] = ()
    # Share of the source files that is taken, by a hash of their names; a decimal number.
    sample: str | None = None
    # "exact": of documents with the same text, only the first stays. The limits count them all.
    dedup: str | None = None

    def __post_init__(self) -> None:
        limits = ("shard_tokens", "max_documents", "max_tokens", "unit_bytes")
        for name in (*limits, "min_chars", "max_chars"):
            value = getattr(self, name)
            if value is not None and value < 1:
                option = "--" + name.replace("_", "-")
                raise ValueError(f"{option} is {value}; expected a number of at least 1")
        if self.dedup not in (None, "exact"):
            raise ValueError(f"--dedup is {self.dedup}; expected exact, or no such option")
        self.validation_threshold()
        parse_fraction(self.sample)
        self.make_filter()

    @property
    def content(self) -> Json:
        """The options that are set: an option that is added later changes no older set's id."""
        return {key: value for key, value in asdict(self).items() if value not in (None, ())}

    def make_filter(self) -> Filter:
        """What chooses the documents."""
        return Filter(self.min_chars, self.max_chars, self.keep_url, self.drop_url, self.where)

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


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    out: Path
    policy: Policy
    # Local files, folders and globs; empty = take `dataset` from the Hub.
    inputs: tuple[str, ...] = ()
    dataset: str = "tiiuae/falcon-refinedweb"
    dataset_config: str | None = None
    split: str = "train"
    revision: str | None = None
    # Units at a time; None = one a core, of this machine or of the Ray cluster.
    workers: int | None = 1
    # One of prep.encoder.ENCODERS; None = the fastest that is installed. Changes no byte.
    encoder: str | None = None
    # What does the units; changes no byte.
    engine: str = "local"
    ray_address: str | None = None
    # The part of the units that this process does; None = all of them, and the manifest.
    part: Part | None = None
    # A finished set that this one will be appended to: its documents come first for --dedup.
    after: Path | None = None
    # Where the set is sent, as it may be printed; `out` is then where it is made.
    url: str | None = None

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

    def _check_part(self) -> None:
        if self.engine != "local":
            raise ValueError(f"--part and --engine {self.engine} both share the work; choose one")
        for name in ("max_documents", "max_tokens"):
            if getattr(self.policy, name) is not None:
                option = "--" + name.replace("_", "-")
                raise ValueError(
                    f"{option} counts through all units in plan order, which no part sees; "
                    f"leave it out with --part, or run without --part (--engine ray keeps it)"
                )

"""The options of `velocity prep`, each with its help, default and check."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal

import typer

from prep.checks import (
    MAX_NUMBER,
    MAX_WORKERS,
    check_number,
    name_option,
    parse_fraction,
    parse_number,
    refuse_empty,
    refuse_unused,
)
from shards.disk.json_files import Json
from shards.part import Part
from shards.screen.names import quote
from shards.screen.url import read_place

# Kinds of source files, by their suffix; prep/readers/formats.py has a reader for each.
COLUMN_FILES = (".parquet", ".arrow", ".feather")
TEXT_FILES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".warc", ".wet")
# What may follow the suffix of a text file, and the compression that it says.
COMPRESSIONS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd", ".zstd": "zstd"}
SUFFIXES = (
    *COLUMN_FILES,
    *(f"{name}{packing}" for packing in ("", *COMPRESSIONS) for name in TEXT_FILES),
)
# All of them in a few words.
KINDS = f"{', '.join((*COLUMN_FILES, *TEXT_FILES))} (text also with .gz, .bz2, .xz or .zst)"
# The options that choose the set's tokenizer.
TOKENIZER_OPTIONS = ("tokenizer", "end_of_document", "begin_of_document")
# Libraries that turn text into ids, fastest first.
ENCODERS = ("fastokens", "tokenizers")
# Where each engine is; prep/engines/contract.py says what it is.
ENGINES = {"local": "prep.engines.local", "ray": "prep.engines.ray_cluster"}
# Kinds of copies that --dedup finds.
NEAR = "near"
DEDUPS = ("exact", NEAR)
MAX_WORDS = 100
# The field of a policy that says what the files of --drop-contained held.
PINNED = "contained_sha256"
# What each setting of --dedup near may be, up to here.
NEAR_LIMITS = {"near_shingle": MAX_WORDS, "near_bands": 256, "near_rows": 64}
NEAR_SETTINGS = ("near_threshold", *NEAR_LIMITS)
# An option that an import has as well.
ShardTokens = Annotated[
    int, typer.Option(help="Maximum tokens per shard; a longer document stays whole.")
]


@dataclass(frozen=True)
class Policy:
    """The settings that decide which tokens come out; all are part of the dataset_id."""

    text_column: Annotated[
        str, typer.Option(help="The column or JSON key that holds the text.")
    ] = "content"
    blank_line_documents: Annotated[
        bool, typer.Option(help="In .txt files, blank lines separate documents.")
    ] = False
    # A decimal number; documents are chosen by a hash of their text.
    validation_fraction: Annotated[
        str, typer.Option(help="Fraction of documents that goes to validation.")
    ] = "0.001"
    shard_tokens: ShardTokens = 1 << 28
    # Both count in plan order, <|endoftext|> included.
    max_documents: Annotated[int | None, typer.Option(help="Stop after this many documents.")] = (
        None
    )
    max_tokens: Annotated[
        int | None, typer.Option(help="Stop before exceeding this many tokens.")
    ] = None
    unit_bytes: Annotated[
        int | None,
        typer.Option(help="Source bytes per unit of work; default: by the total size."),
    ] = None
    min_chars: Annotated[
        int | None, typer.Option(help="Drop documents with fewer characters than this.")
    ] = None
    max_chars: Annotated[
        int | None, typer.Option(help="Drop documents with more characters than this.")
    ] = None
    keep_url: Annotated[
        str | None,
        typer.Option(
            help="Keep only documents whose URL matches this regular expression anywhere."
        ),
    ] = None
    drop_url: Annotated[
        str | None,
        typer.Option(help="Drop documents whose URL matches this regular expression anywhere."),
    ] = None
    where: Annotated[
        tuple[str, ...],
        typer.Option(
            help="Keep only documents that meet this condition on a column, e.g. language=en or "
            "'language_score>=0.65'. May be given several times."
        ),
    ] = ()
    on_bad_document: Annotated[
        str,
        typer.Option(
            help="A document or file that cannot be read: error ends the run there, skip leaves it "
            "out, counts it, and names the first few."
        ),
    ] = "error"
    # A decimal number; files are chosen by a hash of their names.
    sample: Annotated[
        str | None,
        typer.Option(
            help="Use only this fraction of the source files, e.g. 0.01; always the same ones."
        ),
    ] = None
    dedup: Annotated[
        str | None,
        typer.Option(
            help="exact: keep only the first of documents with the same text. near: also of those "
            "with nearly the same. --max-documents and --max-tokens count the copies too."
        ),
    ] = None
    # A decimal number.
    near_threshold: Annotated[
        str,
        typer.Option(help="With --dedup near: how much of their shingles near copies share."),
    ] = "0.8"
    near_shingle: Annotated[int, typer.Option(help="With --dedup near: words in a shingle.")] = 5
    near_bands: Annotated[
        int,
        typer.Option(help="With --dedup near: bands; texts that share one are compared."),
    ] = 16
    near_rows: Annotated[
        int, typer.Option(help="With --dedup near: minima of hashes in a band.")
    ] = 6
    drop_contained: Annotated[
        tuple[str, ...],
        typer.Option(
            help="Drop documents that hold a passage of a text in this file: .txt (blank lines "
            "between texts), JSON lines or .parquet. May be given several times."
        ),
    ] = ()
    contained_words: Annotated[
        int, typer.Option(help="With --drop-contained: words in a passage.")
    ] = 13
    contained_column: Annotated[
        str | None,
        typer.Option(
            help="With --drop-contained: the column or key of its texts; default: --text-column."
        ),
    ] = None
    # The sha256s of those files, once they were read: they decide, and not where the files are.
    contained_sha256: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        limits = ("shard_tokens", "max_documents", "max_tokens", "unit_bytes")
        for name in (*limits, "min_chars", "max_chars"):
            check_number(name, getattr(self, name), MAX_NUMBER)
        if self.dedup not in (None, *DEDUPS):
            raise ValueError(
                f"--dedup is {self.dedup}; expected {' or '.join(DEDUPS)}, or leave the option out"
            )
        self._check_copies()
        if self.on_bad_document not in ("error", "skip"):
            raise ValueError(f"--on-bad-document is {self.on_bad_document}; expected error or skip")
        self.validation_threshold()
        parse_fraction(self.sample)

    @property
    def content(self) -> Json:
        """Only the options that are set: a new one that is None or () by default changes no id."""
        content = {key: value for key, value in asdict(self).items() if value not in (None, ())}
        if not self.skips_bad:
            del content["on_bad_document"]
        unused = {"drop_contained"}
        if self.dedup != NEAR:
            unused.update(NEAR_SETTINGS)
        if not self.drop_contained and not self.contained_sha256:
            unused.add("contained_words")
        return {key: value for key, value in content.items() if key not in unused}

    def _check_copies(self) -> None:
        """Refuse settings of copies that mean nothing, or would be used for nothing."""
        for name, most in NEAR_LIMITS.items():
            check_number(name, getattr(self, name), most)
        parse_fraction(self.near_threshold, "--near-threshold", "0.8")
        if self.dedup != NEAR:
            refuse_unused(self, NEAR_SETTINGS, "--dedup near")
        refuse_empty("--drop-contained", self.drop_contained)
        check_number("contained_words", self.contained_words, MAX_WORDS)
        if not (self.drop_contained or self.contained_sha256):
            refuse_unused(self, ("contained_words", "contained_column"), "--drop-contained")

    @property
    def skips_bad(self) -> bool:
        """Whether bad documents and files are left out and counted; else they end the run."""
        return self.on_bad_document == "skip"

    def validation_threshold(self) -> int:
        """A document goes to validation if the first 64 bits of its hash are below this.

        >>> Policy(validation_fraction="0.5").validation_threshold() == 2**63
        True
        """
        fraction = parse_number(self.validation_fraction)
        if fraction is None or not 0 <= fraction < 1:
            raise ValueError(
                f"--validation-fraction is {self.validation_fraction!s:.60}; "
                "expected a number from 0 to less than 1, such as 0.001"
            )
        return int(fraction * 2**64)


@dataclass(frozen=True)
class Request:
    """What the user asked for; the policy, the sources and the tokenizer decide the bytes.

    `out` is the folder in which the set is made.
    """

    out: Annotated[
        Path,
        typer.Option(
            help="Folder for the shards, or a URL: s3://bucket/prefix, gs://...",
            parser=read_place,
            metavar="<path>",
        ),
    ]
    # Empty = take `dataset` from the Hub.
    inputs: Annotated[
        tuple[str, ...],
        typer.Option(
            "--input",
            help="Text instead of a Hub dataset, here or at a URL (https://, hf://datasets/, "
            f"s3://, gs://): a file, folder or glob of {KINDS}. May be given several times.",
        ),
    ] = ()
    dataset: Annotated[str, typer.Option(help="Dataset on the Hugging Face Hub.")] = (
        "tiiuae/falcon-refinedweb"
    )
    dataset_config: Annotated[
        tuple[str, ...],
        typer.Option(
            help="Configuration of the dataset, if it has several. May be given several times."
        ),
    ] = ()
    data_files: Annotated[
        tuple[str, ...],
        typer.Option(
            help="Files of the dataset's repository instead of a split: a path, folder or quoted "
            "glob such as 'en/*.json.gz'. May be given several times."
        ),
    ] = ()
    split: Annotated[
        str, typer.Option(help="Split of the dataset, or of an --input folder that datasets saved.")
    ] = "train"
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of the dataset; pinned to a commit.")
    ] = None
    policy: Policy = field(default_factory=Policy)
    # The three decide the tokens too; the manifest has what they turned out to be.
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="gpt2, a tokenizer.json, a folder that has one, or a repository of the Hub "
            "(owner/name or owner/name@revision; pinned to a commit); default: gpt2, and with "
            "--append the set's own."
        ),
    ] = None
    end_of_document: Annotated[
        str | None,
        typer.Option(
            help="The special token after each document, or its id; default: the tokenizer's own."
        ),
    ] = None
    begin_of_document: Annotated[
        str | None,
        typer.Option(help="A special token before each document, or its id; default: none."),
    ] = None
    encoder: Annotated[
        str | None,
        typer.Option(
            help="fastokens or tokenizers; default: the fastest installed. Same output either way."
        ),
    ] = None
    # Units at a time; on a Ray cluster, the cores of all its machines count.
    workers: Annotated[
        int | None,
        typer.Option(help="Worker processes; default: one per core. Does not change the output."),
    ] = None
    engine: Annotated[
        str,
        typer.Option(
            help="local, or ray for the machines of a Ray cluster. Does not change the output."
        ),
    ] = "local"
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="Ray cluster, e.g. head:6379 or auto; default: RAY_ADDRESS, else a new one."
        ),
    ] = None
    # The whole set, one part of its units, the end of all parts, or an addition to a finished set.
    task: Part | Literal["whole", "finish", "append"] = "whole"
    # A finished set that this one will be appended to: its documents come first for --dedup.
    after: Path | None = None
    # The URL that the set is sent to, without secrets: safe to print.
    url: str | None = None

    @property
    def part(self) -> Part | None:
        """The part of the units that this process does; None = all of them."""
        return self.task if isinstance(self.task, Part) else None

    @property
    def place(self) -> str:
        """The set's place as a command line gives it, after --out."""
        if self.url is None:
            return quote(self.out)
        return f"{quote(self.url)} --staging {quote(self.out)}"

    def __post_init__(self) -> None:
        refuse_empty("--input", self.inputs)
        refuse_empty("--dataset", [self.dataset])
        for name in TOKENIZER_OPTIONS:
            if (value := getattr(self, name)) is not None:
                refuse_empty(name_option(name), [value])
        refuse_empty("--dataset-config", self.dataset_config)
        refuse_empty("--data-files", self.data_files)
        if self.data_files and (self.dataset_config or self.split != "train"):
            raise ValueError(
                "--data-files names the files itself; leave out --dataset-config and --split"
            )
        check_number("workers", self.workers, MAX_WORKERS)
        if self.engine not in ENGINES:
            raise ValueError(f"--engine is {self.engine}; expected {' or '.join(ENGINES)}")
        if self.ray_address is not None and self.engine != "ray":
            raise ValueError("--ray-address is for --engine ray; give both or neither")
        if self.encoder not in (None, *ENCODERS):
            expected = " or ".join(ENCODERS)
            raise ValueError(f"--encoder is {self.encoder}; expected {expected}")
        if self.part is not None:
            self._check_part()
        if self.task == "finish":
            self._check_finish()

    def _check_part(self) -> None:
        if self.engine != "local":
            raise ValueError(f"--part and --engine {self.engine} both divide the work; choose one")
        for name in ("max_documents", "max_tokens"):
            if getattr(self.policy, name) is not None:
                raise ValueError(
                    f"{name_option(name)} counts across all units in plan order, which no part "
                    "sees; leave it out with --part, or run without --part (--engine ray allows it)"
                )

    def _check_finish(self) -> None:
        """Refuse options that the parts have already settled."""
        sources = ("inputs", "dataset", "dataset_config", "data_files", "split", "revision")
        how = (*TOKENIZER_OPTIONS, "encoder", "engine", "ray_address")
        usual = {entry.name: entry.default for entry in fields(self)}
        chosen = [name for name in (*sources, *how) if getattr(self, name) != usual[name]]
        policy, default = vars(self.policy), vars(Policy())
        chosen += [name for name in default if policy[name] != default[name]]
        if chosen:
            raise ValueError(
                f"{', '.join(map(name_option, chosen))}: --finish uses the sources and options "
                "that the parts were run with; leave this out"
            )

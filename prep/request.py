"""The options of `velocity prep`, each with its help, default and check."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal

import typer

from prep.checks import (
    MAX_WORKERS,
    check_number,
    name_option,
    refuse_empty,
    refuse_unused,
)
from prep.policy import BeginOfDocument, EndOfDocument, Policy
from shards.disk.part import Part
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
# The dataset that is prepared if none is named.
DATASET = "tiiuae/falcon-refinedweb"
# The options that choose the set's tokenizer.
TOKENIZER_OPTIONS = ("tokenizer", "end_of_document", "begin_of_document")
# Libraries that turn text into ids, fastest first.
ENCODERS = ("fastokens", "tokenizers")
# Where each engine is; prep/engines/contract.py says what it is.
ENGINES = {"local": "prep.engines.local", "ray": "prep.engines.ray_cluster"}


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
    dataset: Annotated[str, typer.Option(help="Dataset on the Hugging Face Hub.")] = DATASET
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
    template: Annotated[
        str | None,
        typer.Option(
            help="With --chat: the template that makes text of messages, as a file in Jinja, a "
            "model's folder, chatml or plain; default: that of --tokenizer's folder, else chatml."
        ),
    ] = None
    end_of_document: EndOfDocument = None
    begin_of_document: BeginOfDocument = None
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
        if self.inputs:
            self._check_inputs()
        if self.data_files and (self.dataset_config or self.split != "train"):
            raise ValueError(
                "--data-files names the files itself; leave out --dataset-config and --split"
            )
        check_number("workers", self.workers, MAX_WORKERS)
        if self.engine not in ENGINES:
            raise ValueError(f"--engine is {self.engine}; expected {' or '.join(ENGINES)}")
        if self.engine != "ray":
            refuse_unused(self, ["ray_address"], "--engine ray")
        if self.encoder not in (None, *ENCODERS):
            expected = " or ".join(ENCODERS)
            raise ValueError(f"--encoder is {self.encoder}; expected {expected}")
        self._check_chat()
        if self.part is not None:
            self._check_part()
        if self.task == "finish":
            self._check_finish()

    def _check_chat(self) -> None:
        """Refuse what has no meaning for chats, or only for them."""
        if not self.policy.chat:
            refuse_unused(self, ["template"], "--chat")
            return
        if self.template is not None:
            refuse_empty("--template", [self.template])
        if self.begin_of_document is not None:
            raise ValueError(
                "--begin-of-document is for texts; with --chat, the template says what a chat "
                "begins with, so leave it out"
            )
        if self.encoder not in (None, "tokenizers"):
            raise ValueError(
                f"--encoder is {self.encoder}; chats are encoded with tokenizers, which says where "
                "each token lies in the text, so leave it out"
            )

    def _check_inputs(self) -> None:
        """Refuse what only a dataset of the Hub has."""
        for name in ("dataset_config", "data_files", "revision"):
            if getattr(self, name):
                raise ValueError(
                    f"{name_option(name)} is for --dataset, not --input; files of the Hub are "
                    "given to --input as hf://datasets/owner/name@revision/path"
                )
        if self.dataset != DATASET:
            raise ValueError(
                f"--dataset is {self.dataset}, and --input is given as well; choose one"
            )

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
        how = (*TOKENIZER_OPTIONS, "template", "encoder", "engine", "ray_address")
        usual = {entry.name: entry.default for entry in fields(self)}
        chosen = [name for name in (*sources, *how) if getattr(self, name) != usual[name]]
        policy, default = vars(self.policy), vars(Policy())
        chosen += [name for name in default if policy[name] != default[name]]
        if chosen:
            raise ValueError(
                f"{', '.join(map(name_option, chosen))}: --finish uses the sources and options "
                "that the parts were run with; leave this out"
            )

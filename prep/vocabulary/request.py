"""The options of `velocity tokenizer train`, each with its help, default and check."""

from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import typer

from prep.checks import check_number, parse_number, refuse_empty
from prep.policy import Policy
from prep.request import SUFFIXES
from shards.disk.json_files import Json

# Ids of single bytes, which every text can be made of.
NUM_BYTES = 256
MAX_VOCAB_SIZE = 1 << 24
# The library counts pairs in 32 bits; no pair can be in the text more often than it has bytes.
MAX_TRAIN_BYTES = (1 << 31) - 1


@dataclass(frozen=True)
class TrainRequest:
    """What the user asked for; with the same text it is the same tokenizer, byte for byte."""

    out: Annotated[Path, typer.Option(help="A new folder for the tokenizer.")]
    inputs: Annotated[
        tuple[str, ...],
        typer.Option(
            "--input",
            help="Text to train on, as for prep: a file, folder or glob of "
            f"{', '.join(SUFFIXES)}. May be given several times.",
        ),
    ] = ()
    vocab_size: Annotated[
        int, typer.Option(help="How many ids: 256 for bytes, merges, and special tokens.")
    ] = 32768
    pattern: Annotated[
        str,
        typer.Option(
            help="How text is split before it is merged: llama3 (digits in threes, as in GPT-4), "
            "qwen2 (single digits), gpt2 (runs of digits), or a regular expression."
        ),
    ] = "llama3"
    end_of_document: Annotated[
        str, typer.Option(help="The special token that ends a document.")
    ] = "<|endoftext|>"
    special_token: Annotated[
        tuple[str, ...],
        typer.Option(help="Another special token. May be given several times."),
    ] = ()
    train_bytes: Annotated[
        int,
        typer.Option(help="Train on at most this much text; of more, documents chosen by hash."),
    ] = 1_000_000_000
    # A decimal number.
    held_out_fraction: Annotated[
        str,
        typer.Option(help="Fraction of the text that is measured instead, at most 16 MB."),
    ] = "0.01"
    text_column: Annotated[
        str, typer.Option(help="The column or JSON key that holds the text.")
    ] = Policy.text_column
    blank_line_documents: Annotated[
        bool, typer.Option(help="In .txt files, blank lines separate documents.")
    ] = False
    on_bad_document: Annotated[
        str,
        typer.Option(
            help="A document or file that cannot be read: error, or skip to leave it out."
        ),
    ] = "error"

    def __post_init__(self) -> None:
        if not self.inputs:
            raise ValueError("no --input; name the files or folders with text to train on")
        refuse_empty("--input", self.inputs)
        refuse_empty("--pattern", [self.pattern])
        refuse_empty("--end-of-document", [self.end_of_document])
        refuse_empty("--special-token", self.special_token)
        check_number("train_bytes", self.train_bytes, MAX_TRAIN_BYTES)
        check_number("vocab_size", self.vocab_size, MAX_VOCAB_SIZE)
        if len(set(self.special_tokens)) < len(self.special_tokens):
            raise ValueError("--special-token: the same token twice; expected each once")
        least = NUM_BYTES + len(self.special_tokens)
        if self.vocab_size < least:
            raise ValueError(
                f"--vocab-size is {self.vocab_size}; expected at least {least}: {NUM_BYTES} bytes "
                f"and {len(self.special_tokens)} special"
            )
        if self.on_bad_document not in ("error", "skip"):
            raise ValueError(f"--on-bad-document is {self.on_bad_document}; expected error or skip")
        self.parse_held_out()

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """All special tokens, in the order of their ids, which are the last ones."""
        return (self.end_of_document, *self.special_token)

    @property
    def skips_bad(self) -> bool:
        """Whether bad documents and files are left out and counted; else they end the run."""
        return self.on_bad_document == "skip"

    @property
    def settings(self) -> Json:
        """What decides the tokenizer, besides the text."""
        return {key: value for key, value in asdict(self).items() if key not in ("out", "inputs")}

    def parse_held_out(self) -> Fraction:
        """The fraction of the text to hold out; ValueError if it is none."""
        fraction = parse_number(self.held_out_fraction)
        if fraction is None or not 0 <= fraction <= Fraction(1, 2):
            raise ValueError(
                f"--held-out-fraction is {self.held_out_fraction!s:.60}; "
                "expected a number from 0 to 0.5, such as 0.01"
            )
        return fraction

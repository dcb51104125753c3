"""The policy of a set: the options of `velocity prep` that decide which tokens come out."""

from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from prep.checks import (
    MAX_NUMBER,
    check_number,
    parse_fraction,
    parse_number,
    refuse_empty,
    refuse_unused,
)
from shards.disk.json_files import Json

# Kinds of copies that --dedup finds.
NEAR = "near"
DEDUPS = ("exact", NEAR)
# How --pack packs.
BEST_FIT = "best-fit"
MAX_PACK_TOKENS = 1 << 20
MAX_WORDS = 100
# Which answers of a chat are trained on.
TRAIN_ON = ("all", "last")
# What is said of texts alone.
FOR_TEXTS = ("text_column", "blank_line_documents")
# In place of a text column's name, for rows as a whole: no column that can be typed is called so.
WHOLE_ROW = "\0row"
# The field of a policy that says what the files of --drop-contained held.
PINNED = "contained_sha256"
# What each setting of --dedup near may be, up to here.
NEAR_LIMITS = {"near_shingle": MAX_WORDS, "near_bands": 256, "near_rows": 64}
NEAR_SETTINGS = ("near_threshold", *NEAR_LIMITS)
# Options that an import has as well.
EndOfDocument = Annotated[
    str | None,
    typer.Option(
        help="The special token after each document, or its id; default: the tokenizer's own."
    ),
]
BeginOfDocument = Annotated[
    str | None,
    typer.Option(help="A special token before each document, or its id; default: none."),
]
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
    chat: Annotated[
        bool,
        typer.Option(
            "--chat",
            help="Rows are chats: messages, conversations, prompt and completion, instruction and "
            "output, or chosen and rejected. Only answers are trained on. They are packed.",
        ),
    ] = False
    train_on: Annotated[
        str, typer.Option(help="With --chat: all answers of a chat, or only the last.")
    ] = "all"
    pack: Annotated[
        str | None,
        typer.Option(
            help="best-fit: documents lie in rows of --pack-tokens, none cut that fits into one, "
            "and what stays free is padding; default: one after another."
        ),
    ] = None
    pack_tokens: Annotated[
        int,
        typer.Option(
            help="With --pack or --chat: tokens in a row, which is data.max_seq_length of a run. "
            "Longer chats are dropped."
        ),
    ] = 2048
    # Both count in plan order, the tokens around documents included.
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
    keep_column: Annotated[
        tuple[str, ...],
        typer.Option(
            help="Keep a column of the source beside each document, for data.where: its name and "
            "number, integer, text or boolean, e.g. score:number. May be given several times."
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
    # Of --chat: the sha256 of the template, and the special tokens that it knows by name, such as
    # eos_token=</s>.
    template_sha256: str | None = None
    template_tokens: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.chat and self.pack is None:
            object.__setattr__(self, "pack", BEST_FIT)
        limits = ("shard_tokens", "max_documents", "max_tokens", "unit_bytes")
        for name in (*limits, "min_chars", "max_chars"):
            check_number(name, getattr(self, name), MAX_NUMBER)
        if self.dedup not in (None, *DEDUPS):
            raise ValueError(
                f"--dedup is {self.dedup}; expected {' or '.join(DEDUPS)}, or leave the option out"
            )
        self._check_copies()
        self._check_chat()
        self._check_packing()
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
        unused.update(FOR_TEXTS if self.chat else ("chat", "train_on"))
        if self.dedup != NEAR:
            unused.update(NEAR_SETTINGS)
        if not self.drop_contained and not self.contained_sha256:
            unused.add("contained_words")
        if self.pack is None:
            unused.add("pack_tokens")
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

    def _check_chat(self) -> None:
        """Refuse what has no meaning for chats, or only for them."""
        if not self.chat:
            refuse_unused(self, ("train_on",), "--chat")
            return
        if self.train_on not in TRAIN_ON:
            raise ValueError(
                f"--train-on is {self.train_on!s:.60}; expected {' or '.join(TRAIN_ON)}"
            )
        refuse_unused(self, FOR_TEXTS, "texts, not for --chat")

    @property
    def reads(self) -> str:
        """The column or key that is read of each row; WHOLE_ROW for chats."""
        return WHOLE_ROW if self.chat else self.text_column

    def _check_packing(self) -> None:
        """Refuse packing that is not known, or rows that no document or no shard could lie in."""
        if self.pack is None:
            refuse_unused(self, ("pack_tokens",), f"--pack {BEST_FIT}")
            return
        if self.pack != BEST_FIT:
            raise ValueError(
                f"--pack is {self.pack!s:.60}; expected {BEST_FIT}, or leave the option out"
            )
        check_number("pack_tokens", self.pack_tokens, MAX_PACK_TOKENS)
        if not 2 <= self.pack_tokens <= self.shard_tokens:
            raise ValueError(
                f"--pack-tokens is {self.pack_tokens:,}; expected at least 2, and at "
                f"most --shard-tokens ({self.shard_tokens:,})"
            )

    @property
    def row_tokens(self) -> int | None:
        """The tokens of a row in the set; None if it is not packed."""
        return self.pack_tokens if self.pack else None

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

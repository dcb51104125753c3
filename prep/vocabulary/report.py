"""What a new tokenizer is worth: measured on held-out text, beside GPT-2's."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prep.tokenizer.encoder import call_reference
from prep.tokenizer.gpt2 import build_gpt2_json
from shards.disk.json_files import Json
from shards.format import Int64
from shards.screen.lines import format_bytes
from shards.tokenizer import escape_token, parse_tokenizer, read_spelling

BATCH_PASSAGES = 256
NUM_LONGEST, NUM_SHOWN = 10, 5
SHOWN_CHARACTERS = 32
# Of the files, those with the most held-out text.
NUM_FILES = 100


@dataclass(frozen=True)
class Measured:
    """A tokenizer on some text."""

    # How often each id came up.
    uses: Int64
    # By file.
    tokens: dict[str, int]

    @property
    def num_tokens(self) -> int:
        """The tokens of all files."""
        return sum(self.tokens.values())


def measure(tokenizer_json: str, texts: Mapping[str, Sequence[str]]) -> Measured:
    """Encode the texts of each file with `tokenizers`, the reference."""
    tokenizer = parse_tokenizer(tokenizer_json)
    uses = np.zeros(tokenizer.get_vocab_size(), np.int64)
    tokens = dict.fromkeys(texts, 0)
    for name, passages in texts.items():
        for start in range(0, len(passages), BATCH_PASSAGES):
            ids, _ = call_reference(tokenizer, [*passages[start : start + BATCH_PASSAGES]])
            uses += np.bincount(ids, minlength=len(uses))
            tokens[name] += len(ids)
    return Measured(uses, tokens)


def make_report(tokenizer_json: str, end_of_text: int, texts: Mapping[str, Sequence[str]]) -> Json:
    """The figures of report.json; those of held-out text are null if there is none.

    `end_of_text` is the id that ends a document.
    """
    contents = read_spelling(parse_tokenizer(tokenizer_json), end_of_text).inner
    longest = sorted(contents, key=lambda content: (-len(content), content))[:NUM_LONGEST]
    report: Json = {
        "vocab_size": len(contents),
        "longest_tokens": [escape_token(content) for content in longest],
        "held_out": None,
    }
    num_bytes = {name: sum(map(count_bytes, passages)) for name, passages in texts.items()}
    total = sum(num_bytes.values())
    if not total:
        return report
    ours, gpt2 = measure(tokenizer_json, texts), measure(build_gpt2_json(), texts)
    # Ids that text can become: all but the special ones.
    num_used, num_ids = int(np.count_nonzero(ours.uses)), sum(map(bool, contents))
    largest = sorted(num_bytes, key=lambda name: (-num_bytes[name], name))[:NUM_FILES]
    report["held_out"] = {
        "bytes": total,
        "passages": sum(map(len, texts.values())),
        "tokens": ours.num_tokens,
        "bytes_per_token": divide(total, ours.num_tokens),
        "gpt2_tokens": gpt2.num_tokens,
        "gpt2_bytes_per_token": divide(total, gpt2.num_tokens),
        "bytes_per_token_over_gpt2": divide(gpt2.num_tokens, ours.num_tokens),
        "ids_used": num_used,
        "ids_never_used": num_ids - num_used,
        "share_of_ids_used": divide(num_used, num_ids),
        "bytes_per_token_by_file": {
            name: {
                "bytes": num_bytes[name],
                "bytes_per_token": divide(num_bytes[name], ours.tokens[name]),
                "gpt2_bytes_per_token": divide(num_bytes[name], gpt2.tokens[name]),
            }
            for name in largest
        },
    }
    return report


def count_bytes(text: str) -> int:
    """The size of a text in UTF-8."""
    return len(text.encode("utf-8"))


def divide(count: int, by: int) -> float:
    """A quotient to six significant digits."""
    return float(f"{count / by:.6g}")


def describe_report(report: Json) -> Iterator[str]:
    """The report in words, line by line."""
    text, held_out = report["text"], report["held_out"]
    yield f"{report['vocab_size']:,} ids, from {format_bytes(text['train_bytes'])} of text"
    if held_out is None:
        yield "nothing was held out, so nothing is measured"
    else:
        yield (
            f"{held_out['bytes_per_token']:.2f} bytes a token, GPT-2's "
            f"{held_out['gpt2_bytes_per_token']:.2f}: {held_out['bytes_per_token_over_gpt2']:.3f} "
            f"times as many, on {format_bytes(held_out['bytes'])} of text that was held out"
        )
        yield (
            f"{held_out['share_of_ids_used']:.1%} of the ids came up in it, "
            f"{held_out['ids_never_used']:,} did not"
        )
    yield "the longest: " + ", ".join(map(shorten, report["longest_tokens"][:NUM_SHOWN]))


def shorten(token: str) -> str:
    """A token as it is shown: quoted, and cut if it is long.

    >>> shorten(" the"), shorten("-" * 64)
    ("' the'", "'--------------------------------...' (64)")
    """
    if len(token) <= SHOWN_CHARACTERS:
        return f"'{token}'"
    return f"'{token[:SHOWN_CHARACTERS]}...' ({len(token)})"

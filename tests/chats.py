"""Sets of chats made by hand: their tokens, and which of them are trained on."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from prep.manifest import describe_content
from prep.sources.local import Source
from prep.tokenizer.identity import SetTokenizer
from prep.units.receipts import Audit
from shards.format import Manifest
from shards.packing.writer import Packing, make_writer
from shards.schema import CONVERSATIONS, PREFERENCES
from shards.sidecar import CHAT_COLUMNS, LOSS_SPANS, REJECTED_START, make_rows
from shards.widths import token_dtype
from shards.writer import commit_shards
from tests.tiny import TOKENIZER_JSON
from tests.tokenized import write_manifest

MARKS = ("<|im_start|>", "<|im_end|>")
# ChatML, in which what an assistant writes is marked.
TEMPLATE = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' -%}
{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}
{%- else -%}
{{ message.content + '<|im_end|>\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""


def make_chat_tokenizer_json(tokenizer_json: str = TOKENIZER_JSON) -> str:
    """A tokenizer with the tokens of ChatML as its last ones."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.add_special_tokens([*MARKS])
    return tokenizer.to_str()


CHAT_TOKENIZER_JSON = make_chat_tokenizer_json()


@dataclass(frozen=True)
class Chat:
    """A document of a set of chats: its tokens, the end token included."""

    ids: tuple[int, ...]
    # What is trained on: (begin, end), from its first token on.
    spans: tuple[tuple[int, int], ...]
    rejected_start: int | None = None


def write_chats(
    folder: Path,
    chats: Sequence[Chat],
    row_tokens: int,
    shard_tokens: int = 4000,
    split: str = "train",
    validation: Sequence[Chat] = (),
) -> Manifest:
    """A finished set of the chats, in rows, with the tokenizer CHAT_TOKENIZER_JSON.

    Chat n has the URL https://example.com/n; those for validation come after the others. They are
    pairs if the first one is.
    """
    folder.mkdir()
    (folder / "tokenizer.json").write_text(CHAT_TOKENIZER_JSON, encoding="utf-8")
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    tokenizer = Tokenizer.from_str(CHAT_TOKENIZER_JSON)
    sha256 = hashlib.sha256(CHAT_TOKENIZER_JSON.encode()).hexdigest()
    identity = SetTokenizer("test", sha256, tokenizer.get_vocab_size(), 0)
    is_pairs = chats[0].rejected_start is not None
    packing = Packing(row_tokens, identity.end_of_text)
    writers = {
        each: make_writer(folder, each, f"{each}-00000", shard_tokens, 2, packing)
        for each in (split, *(["validation"] if validation else []))
    }
    splits = [*([split] * len(chats)), *(["validation"] * len(validation))]
    for number, chat in enumerate([*chats, *validation]):
        kept = {
            LOSS_SPANS: pa.array([[e for s in chat.spans for e in s]], CHAT_COLUMNS[LOSS_SPANS])
        }
        if is_pairs:
            kept[REJECTED_START] = pa.array([chat.rejected_start], pa.uint32())
        rows = make_rows(
            np.array([len(chat.ids)]),
            pa.array(["chats"]),
            np.array([number]),
            pa.array([f"https://example.com/{number}"]),
            hashlib.sha256(str(chat.ids).encode()).digest()[:16],
            kept,
        )
        writers[splits[number]].append(np.array(chat.ids, token_dtype(2)), rows)
    written = [entry for writer in writers.values() for entry in writer.finish()]
    commit_shards(written, folder)
    counts = {each: splits.count(each) for each in writers}
    audit = Audit(len(splits), **counts, rows_by_source={"chats": len(splits)})
    chat_facts = {
        "kind": PREFERENCES if is_pairs else CONVERSATIONS,
        "template_sha256": hashlib.sha256(TEMPLATE.encode()).hexdigest(),
    }
    content = describe_content(
        folder,
        [Source("chats", 1, None)],
        audit,
        {"validation_fraction": "0"},
        identity,
        None,
        row_tokens,
        chat_facts,
    )
    return write_manifest(folder, content, written, audit)

"""Batches of rows as batches of chats: with their texts, their tokens, and what is trained on."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from model.chat.encode import Chat, ChatEncoder, EncodedChat, TemplateFault
from model.chat.template import ChatTemplate, RendererCrash, RenderError
from prep.chat.rows import BadRow, ChatRow, find_reason, parse_row
from prep.policy import Policy
from prep.readers.documents import DROPPED, BadDocument, Documents
from prep.text.batch import EncodedBatch, take_chats
from prep.tokenizer.identity import SetTokenizer
from shards.disk.layout import CHAT_TEMPLATE, TOKENIZER
from shards.format import Int64
from shards.schema import PREFERENCES
from shards.sidecar import CHAT_COLUMNS, LOSS_SPANS, REJECTED_START
from shards.tokenizer import read_tokenizer_json

# The column of a batch that holds the tokens of each chat.
IDS = "\0ids"
LISTS = CHAT_COLUMNS[LOSS_SPANS]
# What is counted as dropped.
TOO_LONG = "too long"
LAST = "last"
CALLS = "tool_calls"


@dataclass(frozen=True)
class Encoded:
    """A document of a set of chats: a chat, or a pair of them in one piece."""

    text: str
    ids: Int64
    # Begin and end of what is trained on, in turn.
    edges: Int64
    # Of a pair: where the rejected chat begins.
    half: int | None


class ChatReader:
    """Makes chats of a unit's rows, with the template of its set."""

    def __init__(self, folder: Path, policy: Policy, tokenizer: SetTokenizer) -> None:
        source = (folder / CHAT_TEMPLATE).read_bytes().decode("utf-8")
        tokens = dict(entry.split("=", 1) for entry in policy.template_tokens)
        self.template = ChatTemplate(source, tokens, has_clock=False)
        self.encoder = ChatEncoder(self.template, read_tokenizer_json(folder / TOKENIZER))
        self.policy = policy
        self.end_of_text, self.token_bytes = tokenizer.end_of_text, tokenizer.token_bytes
        # The format of each file's rows, and what the unit's are, once there was a row.
        self.formats: dict[str, str] = {}
        self.kind: str | None = None
        # The most tokens of a chat that is dropped because it is too long.
        self.longest = 0

    def close(self) -> None:
        """End the process that runs the template."""
        self.template.close()

    def read(self, documents: Documents) -> Documents:
        """The rows, whose texts are JSON, as chats.

        Raises BadDocument for the first that is none, unless bad ones are skipped.
        """
        rows: dict[int, ChatRow] = {}
        faults: dict[int, BadDocument] = dict(documents.bad)
        dropped: dict[int, str] = {}
        for place, source in enumerate(documents.texts.to_pylist()):
            if source is None:
                continue
            try:
                row = self._expect_same(documents.path, parse_row(json.loads(source)))
                self._expect_written(row)
            except BadRow as error:
                self._add_fault(documents, faults, place, str(error), error.reason)
                continue
            reasons = [reason for chat in row.chats if (reason := find_reason(chat))]
            if reasons:
                dropped[place] = reasons[0]
            else:
                rows[place] = row
        encoded = self._encode(documents, rows, faults, dropped)
        return self._join(documents, encoded, faults, dropped)

    def take(
        self,
        documents: Documents,
        source_files: pa.Array,
        validation_threshold: int,
        columns: Mapping[str, pa.Array],
    ) -> EncodedBatch:
        """Chats that `read` made and that stay, as a batch; `columns` stay beside them."""
        own = {name: documents.columns[name] for name in CHAT_COLUMNS if name in documents.columns}
        return take_chats(
            documents,
            source_files,
            validation_threshold,
            self.token_bytes,
            documents.columns[IDS],
            {**columns, **own},
        )

    def _expect_same(self, path: str, row: ChatRow) -> ChatRow:
        """The row, if it has the format of its file, and is what all rows are."""
        first = self.formats.setdefault(path, row.format)
        if first != row.format:
            raise BadRow(
                f"holds {row.format}, and the rows before it in this file {first}; expected one "
                "format a file",
                "another format",
            )
        if self.kind not in (None, row.kind):
            raise BadRow(
                f"holds {row.format}, and other rows are {self.kind}; expected one kind a set, so "
                "make two sets",
                "another kind",
            )
        self.kind = row.kind
        return row

    def _expect_written(self, row: ChatRow) -> None:
        """BadRow for tool calls that the template would leave out of the text."""
        if CALLS in self.template.source:
            return
        if any(message.get(CALLS) for chat in row.chats for message in chat.messages):
            raise BadRow(
                f"has {CALLS}, which the chat template does not write; name one that does with "
                "--template",
                CALLS,
            )

    def _add_fault(
        self,
        documents: Documents,
        faults: dict[int, BadDocument],
        place: int,
        why: str,
        reason: str,
    ) -> None:
        error = BadDocument(f"{documents.name(place)}: {why}", reason)
        if not self.policy.skips_bad:
            raise error
        faults[place] = error

    def _encode(
        self,
        documents: Documents,
        rows: dict[int, ChatRow],
        faults: dict[int, BadDocument],
        dropped: dict[int, str],
    ) -> dict[int, Encoded]:
        """The chats of rows that have any, by their places in the batch."""
        chats = [self._choose(chat) for row in rows.values() for chat in row.chats]
        try:
            results = iter(self.encoder.encode(chats))
        except RendererCrash as error:
            raise ValueError(
                f"{documents.path}: the process that runs the chat template crashed: {error}"
            ) from None
        found: dict[int, Encoded] = {}
        for place, row in rows.items():
            halves = []
            for result in [next(results) for _ in row.chats]:
                if isinstance(result, EncodedChat):
                    halves.append(result)
                elif place not in faults:
                    self._add_fault(documents, faults, place, *describe(result))
            if place in faults:
                continue
            joined = self._end(halves)
            if len(joined.ids) > self.policy.pack_tokens:
                dropped[place] = TOO_LONG
                self.longest = max(self.longest, len(joined.ids))
            else:
                found[place] = joined
        return found

    def _choose(self, chat: Chat) -> Chat:
        """The chat, with only its last answer trained on if that was asked for."""
        if self.policy.train_on != LAST:
            return chat
        return replace(chat, first_trained=chat.answers[-1])

    def _end(self, chats: list[EncodedChat]) -> Encoded:
        """Chats one behind another, each with the end token, if it does not end with it."""
        ids: list[Int64] = []
        edges: list[Int64] = []
        starts: list[int] = []
        size = 0
        for chat in chats:
            starts.append(size)
            edges.append(chat.spans.ravel() + size)
            is_open = not len(chat.ids) or chat.ids[-1] != self.end_of_text
            ids += [chat.ids, np.full(int(is_open), self.end_of_text)]
            size += len(chat.ids) + is_open
        half = starts[1] if len(starts) > 1 else None
        text = "\n".join(chat.text for chat in chats)
        return Encoded(text, np.concatenate(ids), np.concatenate(edges), half)

    def _join(
        self,
        documents: Documents,
        encoded: dict[int, Encoded],
        faults: dict[int, BadDocument],
        dropped: dict[int, str],
    ) -> Documents:
        """The batch with the chats in place of the rows; others are bad, or dropped."""
        chats = [encoded.get(place) for place in range(len(documents.rows))]
        reasons = [dropped.get(place) for place in range(len(chats))]
        texts = [
            chat.text if chat else (reason and "")
            for chat, reason in zip(chats, reasons, strict=True)
        ]
        columns = {
            **documents.columns,
            DROPPED: pa.array(reasons, pa.string()),
            IDS: make_lists([chat.ids if chat else None for chat in chats]),
            LOSS_SPANS: make_lists([chat.edges if chat else None for chat in chats]),
        }
        if self.kind == PREFERENCES:
            halves = [chat and chat.half for chat in chats]
            columns[REJECTED_START] = pa.array(halves, CHAT_COLUMNS[REJECTED_START])
        return documents._replace(
            texts=pa.array(texts, pa.large_string()), columns=columns, bad=faults
        )


def make_lists(values: list[Int64 | None]) -> pa.Array:
    """Arrays as lists of uint32; None = null."""
    sizes = [0 if value is None else len(value) for value in values]
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    inner = np.concatenate([np.empty(0, np.int64), *(v for v in values if v is not None)])
    mask = pa.array([value is None for value in values], pa.bool_())
    return pa.ListArray.from_arrays(
        pa.array(offsets), pa.array(inner.astype(np.uint32)), type=LISTS, mask=mask
    )


def describe(result: RenderError | TemplateFault) -> tuple[str, str]:
    """Why a template makes nothing of a chat, and what that is counted under."""
    if isinstance(result, RenderError):
        return f"the chat template does not take it: {result}", "refused by the template"
    return f"the chat template cannot be trained with: {result}", "no mask"

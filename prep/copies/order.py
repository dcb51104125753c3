"""All documents in plan order, each with a number: what --dedup near compares."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from prep.copies.exact import NumberedShard, PlacedShard, number_documents
from prep.tokenizer.identity import SetTokenizer
from prep.units.receipts import Receipt
from prep.units.signed import read_signatures
from shards.disk.layout import TOKENIZER
from shards.format import Int64
from shards.near.signatures import NearSettings
from shards.near.texts import TokenText, sign_shard
from shards.tokenizer import load_spelling


class PlanOrder:
    """All documents in plan order: those of earlier shards, of one set, then those of units."""

    def __init__(
        self,
        out: Path,
        receipts: Sequence[Receipt],
        earlier: Sequence[PlacedShard],
        settings: NearSettings,
        tokenizer: SetTokenizer,
    ) -> None:
        self.out = out
        self.tokenizer = tokenizer
        self.receipts = receipts
        self.earlier = earlier
        self.settings = settings
        self.num_earlier = sum(entry.shard.num_rows for entry in earlier)
        self.firsts = {}
        self.count = self.num_earlier
        for receipt in receipts:
            self.firsts[receipt.unit] = self.count
            self.count += receipt.num_documents

    def order_unit(self, receipt: Receipt) -> Int64:
        """The place of each of a unit's documents among those that it read, as its shards lie."""
        signed = read_signatures(self.out, receipt, self.settings)
        return np.argsort(signed["is_validation"], kind="stable")

    def number_shards(self) -> Iterator[NumberedShard]:
        """All shards, with the numbers of their documents."""
        yield from number_documents(self.earlier)
        for receipt in self.receipts:
            yield from self.number_unit(receipt)

    def number_unit(self, receipt: Receipt) -> Iterator[NumberedShard]:
        """The shards of a unit, with the numbers of their documents."""
        numbers = self.firsts[receipt.unit] + self.order_unit(receipt)
        for shard in receipt.shards:
            yield NumberedShard(PlacedShard(self.out, shard), numbers[: shard.num_documents])
            numbers = numbers[shard.num_documents :]

    def sign(self) -> Iterator[npt.NDArray[np.void]]:
        """The signatures of all documents, in the order of their numbers."""
        if self.earlier:
            marks = self.tokenizer
            spelling = load_spelling(self.out / TOKENIZER, marks.end_of_text, marks.begin_of_text)
            text = TokenText(spelling)
            for placed in self.earlier:
                yield from sign_shard(placed.folder, placed.shard, text, self.settings)
        for receipt in self.receipts:
            yield read_signatures(self.out, receipt, self.settings)

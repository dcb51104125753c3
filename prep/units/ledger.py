"""Which units are done, and which comes next.

The set is the documents that fit into --max-documents and --max-tokens, in plan order, whatever
the number of workers. Units are done in parallel, before it is known how much of the budget
earlier ones use. So a unit gets what is left as far as is known, which may be too much; the ledger
goes through the receipts in plan order and has such a unit done again with exactly what is left.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

from prep.units.budget import Budget
from prep.units.receipts import Receipt, discard_unit, read_receipt
from shards.disk.layout import pending_path


class Ledger:
    """The receipts of a plan's units in `folder`, and how far they settle what the set is.

    `units` are all of the plan's, in their order, or those of a part; no others are touched.
    """

    def __init__(self, folder: Path, plan_id: str, units: Sequence[int], budget: Budget) -> None:
        self.folder = folder
        self.plan_id = plan_id
        self.units = units
        # This many of the units are final, and `remaining` is what they leave of the budget.
        self.settled = 0
        self.remaining = budget
        self.is_full = budget.is_spent
        for unit in units:
            if pending_path(folder, unit).exists():  # Killed while its shards were being renamed.
                discard_unit(folder, unit)
        found = (read_receipt(folder, unit, plan_id) for unit in units)
        self.receipts = {receipt.unit: receipt for receipt in found if receipt}
        self._settle()

    @property
    def is_complete(self) -> bool:
        """Whether every unit of the set is done."""
        return self.is_full or self.settled == len(self.units)

    @property
    def undone(self) -> list[int]:
        """The units that have no receipt; none once the set is complete."""
        if self.is_complete:
            return []
        return [unit for unit in self.units if unit not in self.receipts]

    def add(self, receipt: Receipt) -> None:
        """Add the receipt of a unit that was just done."""
        self.receipts[receipt.unit] = receipt
        self._settle()

    def next_unit(self, in_work: Collection[int]) -> int | None:
        """The first unit that is neither done nor in progress; it may add at most `remaining`."""
        if self.is_full:
            return None
        for unit in self.units[self.settled :]:
            if unit not in self.receipts and unit not in in_work:
                return unit
        return None

    def close(self) -> list[Receipt]:
        """The receipts of the finished set, in plan order; units past its end are discarded."""
        assert self.is_complete
        for unit in self.units[self.settled :]:
            discard_unit(self.folder, unit)
        return [self.receipts[unit] for unit in self.units[: self.settled]]

    def _settle(self) -> None:
        while not self.is_complete:
            unit = self.units[self.settled]
            receipt = self.receipts.get(unit)
            if receipt is None:
                return
            if not self._is_exact(receipt):
                del self.receipts[unit]
                discard_unit(self.folder, unit)
                return
            self.remaining = self.remaining.minus(receipt.num_documents, receipt.num_tokens)
            self.settled += 1
            self.is_full = receipt.truncated or self.remaining.is_spent

    def _is_exact(self, receipt: Receipt) -> bool:
        """Whether the unit is what it would be had it been given exactly what was left."""
        if receipt.truncated:
            return receipt.budget == self.remaining
        return self.remaining.covers(receipt.num_documents, receipt.num_tokens)

"""--dedup near: the signatures of a unit's documents, as a file beside its receipt.

The file is the signatures of the kept documents in the order in which they were read, each with the
side of the split that it is on, as the numpy array lies in memory. It is there until it is decided
which documents are near copies, and its sha256 is in the receipt.
"""

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from prep.checks import parse_number
from prep.policy import Policy
from prep.units.receipts import Receipt
from shards.disk.durable import commit, naming, sync_file
from shards.disk.folders import make_folder
from shards.disk.layout import near_path, receipt_path
from shards.near.signatures import NearSettings, sign_texts

Signed = npt.NDArray[np.void]


def near_settings(policy: Policy) -> NearSettings:
    """What near-equal means under a policy."""
    threshold = parse_number(policy.near_threshold)
    assert threshold is not None  # Policy has checked it.
    return NearSettings(threshold, policy.near_shingle, policy.near_bands, policy.near_rows)


def signed_entry(settings: NearSettings) -> np.dtype[np.void]:
    """How a document's signature is stored."""
    return np.dtype([*settings.entry.descr, ("is_validation", "?")])


class Signatures:
    """The signatures of a unit's documents, while it is in work."""

    def __init__(self, settings: NearSettings) -> None:
        self.settings = settings
        self.parts: list[Signed] = []

    def add(self, texts: pa.Array, is_validation: npt.NDArray[np.bool_]) -> None:
        """Sign the next documents."""
        part = np.zeros(len(texts), signed_entry(self.settings))
        found = sign_texts(texts, self.settings)
        part["keys"], part["low"] = found["keys"], found["low"]
        part["is_validation"] = is_validation
        self.parts.append(part)

    def write(self, path: Path) -> str:
        """Write all of them, durably; returns the sha256 of the file."""
        sha256 = hashlib.sha256()
        with naming(path), open(path, "xb") as file:
            for part in self.parts:
                content = part.tobytes()
                sha256.update(content)
                file.write(content)
            sync_file(file)
        return sha256.hexdigest()


def commit_signatures(temporary: Path, folder: Path, unit: int) -> None:
    """Give the file of a unit's signatures its name."""
    make_folder(near_path(folder, unit).parent)
    commit(temporary, near_path(folder, unit))


def read_signatures(folder: Path, receipt: Receipt, settings: NearSettings) -> Signed:
    """The signatures of a unit's documents; ValueError if they are not those that were written."""
    path = near_path(folder, receipt.unit)
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != receipt.near_sha256:
        raise ValueError(
            f"{path}: is missing or damaged (sha256); remove {receipt_path(folder, receipt.unit)} "
            "and run the same command again, which makes the unit again"
        )
    return np.frombuffer(content, signed_entry(settings))

"""safetensors files written and read in one pass, hashed on the way.

    8 bytes    the header's length, little-endian
    header     JSON: {"<name>": {"dtype": "F32", "shape": [...], "data_offsets": [...]}, ...}
    data       the tensors' bytes, one after the other

The files are those of `safetensors.torch.save_file`, byte for byte. Its functions would need a
second pass over as many bytes to hash them. Hashing, writing and reading leave Python's lock to
other threads, and use one core.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from model.checkpoints.seal import CheckpointError, Sealed

# In the order of the file: tensors of the first come first, then by name.
DTYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint8: "U8",
}
# Read or written at a time.
CHUNK_BYTES = 16 << 20
MAX_HEADER_BYTES = 2**24  # A tensor takes some hundred.


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Sealed:
    """Write a safetensors file, which is on disk when this returns; its size and sha256."""
    ranks = list(DTYPES)
    names = sorted(tensors, key=lambda name: (ranks.index(tensors[name].dtype), name))
    header = make_header({name: tensors[name] for name in names}, metadata)
    digest, num_bytes = hashlib.sha256(), 0
    with open(path, "wb") as file:
        for part in iterate_chunks([header, *(view_bytes(tensors[name]) for name in names)]):
            digest.update(part)
            file.write(part)
            num_bytes += len(part)
        file.flush()
        os.fsync(file.fileno())
    return Sealed(num_bytes, digest.hexdigest())


def make_header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> memoryview:
    """The beginning of a file that holds these tensors in this order."""
    entries: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        entries[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return memoryview(len(text).to_bytes(8, "little") + text)


def view_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor: its memory itself, if it is contiguous and on the CPU."""
    flat = tensor.detach().reshape(-1).view(torch.uint8)
    return flat.cpu().numpy().data


def iterate_chunks(parts: Iterable[memoryview]) -> Iterator[memoryview]:
    """The same bytes in pieces of no more than CHUNK_BYTES."""
    for part in parts:
        for start in range(0, len(part), CHUNK_BYTES):
            yield part[start : start + CHUNK_BYTES]


@dataclass(frozen=True)
class Entry:
    """What a file's header says about a tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int


class TensorReader:
    """Reads a file's tensors in the order of the file, and compares the whole with its seal.

    CheckpointError names the file if its header is not one, or does not fit its size. What has been
    read counts only once `check` has passed.
    """

    def __init__(self, path: Path, sealed: Sealed) -> None:
        self.path = path
        self.sealed = sealed
        self.digest = hashlib.sha256()
        self.buffer = torch.empty(CHUNK_BYTES, dtype=torch.uint8)
        self.file = open(path, "rb", buffering=0)  # noqa: SIM115, closed by __exit__
        try:
            self.entries = self._read_entries()
        except BaseException:
            self.file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.file.close()

    def read_into(self, target: Tensor) -> None:
        """Read the next tensor into a contiguous one of its dtype and shape, on any device."""
        flat = target.detach().reshape(-1)
        assert flat.data_ptr() == target.data_ptr()
        done, size = 0, target.element_size()
        while done < target.nbytes:
            chunk = self.buffer[: min(CHUNK_BYTES, target.nbytes - done)]
            self._read(chunk.numpy().data)
            place = slice(done // size, (done + len(chunk)) // size)
            flat[place].copy_(chunk.view(target.dtype))
            done += len(chunk)

    def check(self) -> None:
        """CheckpointError unless the bytes read are those that were sealed."""
        if self.digest.hexdigest() != self.sealed.sha256 or self.file.read(1):
            raise self._damaged("its sha256 is not the one in checksums.json")

    def _read_entries(self) -> list[Entry]:
        length = int.from_bytes(self._read_bytes(8), "little")
        if not 0 < length <= min(MAX_HEADER_BYTES, self.sealed.num_bytes - 8):
            raise self._damaged(f"its header has {length:,} bytes")
        try:
            found: dict[str, Any] = json.loads(self._read_bytes(length))
            found.pop("__metadata__", None)
            spans = sorted((entry["data_offsets"], name) for name, entry in found.items())
            entries = [
                Entry(name, str(found[name]["dtype"]), tuple(found[name]["shape"]), end - start)
                for (start, end), name in spans
            ]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged(f"its header cannot be read: {error}") from None
        if 8 + length + sum(entry.num_bytes for entry in entries) != self.sealed.num_bytes:
            raise self._damaged("its header does not fit its size")
        return entries

    def _read_bytes(self, count: int) -> bytes:
        content = bytearray(count)
        self._read(memoryview(content))
        return bytes(content)

    def _read(self, into: memoryview) -> None:
        """Fill `into` with what comes next in the file, and hash it."""
        done = 0
        while done < len(into):
            count = self.file.readinto(into[done:])
            if not count:
                raise self._damaged(f"it ends before its {self.sealed.num_bytes:,} bytes")
            done += count
        self.digest.update(into)

    def _damaged(self, fault: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: damaged; {fault}")


def check_entries(path: Path, entries: Iterable[Entry], targets: Mapping[str, Tensor]) -> None:
    """CheckpointError unless a file holds exactly tensors of these names, dtypes and shapes."""
    found = {entry.name: entry for entry in entries}
    for name, target in targets.items():
        entry = found.pop(name, None)
        if entry is None:
            raise CheckpointError(f"{path}: no {name}; the file belongs to another model")
        expected = (DTYPES[target.dtype], tuple(target.shape))
        if (entry.dtype, entry.shape) != expected or entry.num_bytes != count_bytes(target):
            raise CheckpointError(
                f"{path}: {name} is {entry.dtype} of shape {entry.shape}, expected {expected[0]} "
                f"of shape {expected[1]}; the file belongs to another model"
            )
    if found:
        raise CheckpointError(f"{path}: unknown tensor {min(found)}; it belongs to another model")


def count_bytes(tensor: Tensor) -> int:
    """The bytes of a whole tensor, of which a rank may hold a part."""
    return math.prod(tensor.shape) * tensor.element_size()

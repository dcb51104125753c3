"""safetensors files written and read in one pass, hashed on the way where they are sealed.

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
DTYPES_BY_NAME = {name: dtype for dtype, name in DTYPES.items()} | {"I32": torch.int32}
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

    @property
    def is_possible(self) -> bool:
        """Whether a tensor of this shape takes so many bytes; one of an unknown dtype may."""
        if not all(type(size) is int and size >= 0 for size in self.shape):
            return False
        dtype = DTYPES_BY_NAME.get(self.dtype)
        return dtype is None or self.num_bytes == math.prod(self.shape) * dtype.itemsize


class TensorReader:
    """Reads a file's tensors in the order of the file, and compares the whole with its seal.

    CheckpointError names the file if its header is not one, or does not fit its size. What has been
    read counts only once `check` has passed. A file without a seal is not hashed.
    """

    def __init__(self, path: Path, sealed: Sealed | None) -> None:
        self.path = path
        self.sealed = sealed
        self.digest = hashlib.sha256()
        self.buffer = torch.empty(CHUNK_BYTES, dtype=torch.uint8)
        self.file = open(path, "rb", buffering=0)  # noqa: SIM115, closed by __exit__
        self.num_bytes = sealed.num_bytes if sealed else os.fstat(self.file.fileno()).st_size
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

    def read_into(self, target: Tensor, dtype: torch.dtype | None = None) -> None:
        """Read the next tensor into a contiguous one of its shape, on any device.

        It is of `dtype` in the file, and else of the target's.
        """
        flat = target.detach().reshape(-1)
        assert flat.data_ptr() == target.data_ptr()
        dtype = dtype or target.dtype
        is_plain = target.device.type == "cpu" and target.dtype == dtype
        step = CHUNK_BYTES // dtype.itemsize
        for start in range(0, len(flat), step):
            part = flat[start : start + step]
            if is_plain:
                self._read(part.view(torch.uint8).numpy().data)
                continue
            chunk = self.buffer[: len(part) * dtype.itemsize]
            self._read(chunk.numpy().data)
            part.copy_(chunk.view(dtype))

    def skip(self, entry: "Entry") -> None:
        """Pass over the next tensor."""
        assert self.sealed is None, "what is not read cannot be hashed"
        self.file.seek(entry.num_bytes, os.SEEK_CUR)

    def check(self) -> None:
        """CheckpointError unless the bytes read are those that were sealed."""
        assert self.sealed
        if self.digest.hexdigest() != self.sealed.sha256 or self.file.read(1):
            raise self._damaged("its sha256 is not the one in checksums.json")

    def _read_entries(self) -> list[Entry]:
        length = int.from_bytes(self._read_bytes(8), "little")
        if not 0 < length <= min(MAX_HEADER_BYTES, self.num_bytes - 8):
            raise self._damaged(f"its header has {length:,} bytes")
        try:
            found: dict[str, Any] = json.loads(self._read_bytes(length))
            found.pop("__metadata__", None)
            spans = sorted((entry["data_offsets"], name) for name, entry in found.items())
            entries = [
                Entry(name, str(found[name]["dtype"]), tuple(found[name]["shape"]), end - start)
                for (start, end), name in spans
            ]
            place = 0
            for ((start, end), _), entry in zip(spans, entries, strict=True):
                if start != place or not entry.is_possible:
                    raise ValueError(f"{entry.name[:80]} is not where it could be")
                place = end
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self._damaged(f"its header cannot be read: {str(error)[:200]}") from None
        if 8 + length + place != self.num_bytes:
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
                raise self._damaged(f"it ends before its {self.num_bytes:,} bytes")
            done += count
        if self.sealed:
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

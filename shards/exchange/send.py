"""Sends files of a set to a URL: each compared with what its sha256 must be, and sent whole."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.disk.durable import hash_file
from shards.exchange.packing import PACKED, TRAILER_BYTES, make_trailer, pack, read_chunks
from shards.exchange.storage import Storage
from shards.exchange.transfer import Meter, keep_trying, transfer_all
from shards.screen.names import advise_verify


@dataclass(frozen=True)
class LocalFile:
    """A file of a set to be sent."""

    path: Path
    num_bytes: int
    # None if the manifest does not say.
    sha256: str | None
    # What says the sha256, and what to do if it is another one; None for `advise_verify`.
    source: str = "the manifest"
    advice: str | None = None

    @property
    def can_pack(self) -> bool:
        """Whether compressing it is worthwhile: parquet is compressed already."""
        return self.path.suffix == ".bin"


def send_all(
    storage: Storage, listed: dict[str, int], files: list[LocalFile], compress: bool, workers: int
) -> int:
    """Send all files that are not there; returns how many it sent."""
    meter = Meter(len(files), sum(file.num_bytes for file in files))
    sent = []

    def work(file: LocalFile, meter: Meter) -> str | None:
        if is_there(storage, listed, file):
            meter.add(file.num_bytes, moved=False)
        else:
            keep_trying(lambda: send_file(storage, file, compress, meter), meter)
            sent.append(file.path.name)
        return None

    faults = transfer_all(files, work, meter, workers)
    assert not faults, faults
    return len(sent)


def is_there(storage: Storage, listed: dict[str, int], file: LocalFile) -> bool:
    """Whether a file is already whole at the URL, compressed or not."""
    name = file.path.name
    if listed.get(name) == file.num_bytes:
        return True
    if not file.can_pack or name + PACKED not in listed or file.sha256 is None:
        return False
    return storage.read_tail(name + PACKED, TRAILER_BYTES) == make_trailer(file.sha256)


def send_file(storage: Storage, file: LocalFile, compress: bool, meter: Meter) -> str:
    """Check a file against the manifest, then send it; returns its object's name."""
    found = hash_file(file.path)
    if file.sha256 not in (None, found):
        raise ValueError(
            f"{file.path}: its sha256 is not {file.source}'s, so it is not sent; "
            f"{file.advice or advise_verify(file.path.parent)}"
        )
    packed = compress and file.can_pack
    name = file.path.name + (PACKED if packed else "")
    chunks = pack(file.path, found) if packed else read_file(file.path)
    storage.write(name, chunks)
    meter.add(file.num_bytes)
    return name


def read_file(path: Path) -> Iterator[bytes]:
    """The bytes of a file, in pieces of CHUNK_BYTES."""
    with open(path, "rb") as file:
        yield from read_chunks(file)

"""Bytes compressed as a file's suffix says, by other libraries than the ones that read them back
where there are such.
"""

import bz2
import gzip
import lzma

import zstandard

PACKERS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
    ".zstd": zstandard.compress,
}


def pack(data: bytes, name: str) -> bytes:
    """What a file of this name holds."""
    packers = [packer for suffix, packer in PACKERS.items() if name.lower().endswith(suffix)]
    return packers[0](data) if packers else data

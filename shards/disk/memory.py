"""The memory that this process may use."""

import os
from collections.abc import Iterator
from pathlib import Path


def find_memory(root: Path = Path("/")) -> tuple[int, int] | None:
    """Bytes of memory in all, swap included, and free ones; None where the system does not say.

    A container's limits (cgroup v1 or v2) count where they are lower. `root` is where /proc and
    /sys are.
    """
    try:
        text = (root / "proc/meminfo").read_text(encoding="ascii")
        fields = {line.split(":")[0]: line.split()[1] for line in text.splitlines() if ":" in line}
        total, free, swap = (
            int(fields[name]) * 1024 for name in ("MemTotal", "MemAvailable", "SwapTotal")
        )
    except (OSError, KeyError, IndexError, ValueError):
        return _ask_system()
    for limit, used, swap_limit in _find_limits(root):
        total, free = min(total, limit), min(free, max(limit - used, 0))
        swap = swap if swap_limit is None else min(swap, swap_limit)
    return total + swap, free


def _ask_system() -> tuple[int, int] | None:
    """The same from the C library, which does not know what is free: macOS."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    return (total, total) if total > 0 else None


def _find_limits(root: Path) -> Iterator[tuple[int, int, int | None]]:
    """Limit, use and limit of swap (None = all) of each cgroup of this process that has a limit."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        if not controllers:
            names = ("memory.max", "memory.current")
        # In a container the path may be the host's, and its own group is then the top one.
        parts = Path(path.lstrip("/"))
        for folder in (base / parts, *((base / parent) for parent in parts.parents)):
            limit, used = (_read_number(folder / name) for name in names)
            if limit is not None:
                swap = _read_number(folder / "memory.swap.max")
                both = _read_number(folder / "memory.memsw.limit_in_bytes")
                swap = swap if both is None else max(both - limit, 0)
                yield limit, max((used or 0) - _read_cache(folder), 0), swap


def _read_cache(folder: Path) -> int:
    """The part of a group's use that is cached files, which make room when memory is needed."""
    try:
        lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
        fields = dict(line.split() for line in lines)
        return int(fields.get("total_inactive_file") or fields["inactive_file"])
    except (OSError, KeyError, ValueError):
        return 0


def _read_number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # `max` is no limit.
        return None

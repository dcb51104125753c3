"""A file of the log that grows by whole entries, whatever happens to its disk."""

import os
from contextlib import suppress
from pathlib import Path


class GrowingFile:
    """Appends to a file; what it does not take waits for the next time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.waiting = b""

    def write_waiting(self) -> None:
        """Write the entries that wait; OSError, and not a byte of them in the file, if it fails."""
        if not self.waiting:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Opened each time: the folder may have been unmounted, or removed, and be back.
        with open(self.path, "ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            content = memoryview(self.waiting)
            try:
                while content:
                    content = content[file.write(content) :]
            except OSError:
                with suppress(OSError):
                    file.truncate(end)
                raise
        self.waiting = b""

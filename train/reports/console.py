"""A run's standard error, which may go away before the run ends: `2>&1 | head`, a full disk."""

import io
import os
import sys


class Console(io.TextIOBase):
    """Writes to a descriptor at once; what it does not take is dropped, and nothing is raised."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """How text becomes bytes; what has none is escaped."""
        return "utf-8"

    def write(self, text: str) -> int:
        """Write the text, or as much of it as can be."""
        content = memoryview(text.encode("utf-8", "backslashreplace"))
        try:
            while content:
                content = content[os.write(self.descriptor, content) :]
        except OSError:
            pass
        return len(text)

    def fileno(self) -> int:
        """The descriptor."""
        return self.descriptor

    def isatty(self) -> bool:
        """Whether a person is looking."""
        return os.isatty(self.descriptor)

    def writable(self) -> bool:
        """It is."""
        return True


def keep_standard_error() -> None:
    """Let nothing that is said on standard error end the run."""
    if sys.stderr is None:  # Closed by whoever started the run; a file of ours must not get its 2.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    sys.stderr = Console(2)

"""`velocity` as people type it, in this process: what it says, and how it ends.

A process of its own takes seconds to import torch, so tests start one only where the process is
what they test.
"""

import io
import os
import sys
from collections.abc import Mapping
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import cli


def velocity(
    *arguments: object,
    cwd: Path | None = None,
    stdin: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> tuple[int, str, str]:
    """Run the command; exit code, output, errors. Nothing it says may be a traceback."""
    out, errors = io.StringIO(), io.StringIO()
    given = io.TextIOWrapper(io.BytesIO((stdin or "").encode()))
    with (
        chdir(cwd or Path.cwd()),
        redirect_stdout(out),
        redirect_stderr(errors),
        patch.dict(os.environ, environment or {}),
        patch.object(sys, "argv", ["velocity", *map(str, arguments)]),
        patch.object(sys, "stdin", given),
    ):
        code = run_main()
    assert "Traceback" not in errors.getvalue()
    return code, out.getvalue(), errors.getvalue()


def run_main() -> int:
    """The exit code of the command, whose last words go to standard error as Python puts them."""
    try:
        cli.main()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    return 0

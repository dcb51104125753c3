"""Runs one program in the sandbox, and tells whoever started it how it ended.

This file is run as a script, and imports nothing of ours. Standard input is a JSON object with the
program, the limits and a token. A line of standard output is the token and, if the program did not
end well, why: without the token, which the program is not told, none counts.
"""

import json
import os
import resource
import sys
from typing import Any

MAX_CHARS = 300


def limit(limits: dict[str, list[int]]) -> None:
    """Set limits, by their names in `resource`, for good."""
    for name, (soft, hard) in limits.items():
        resource.setrlimit(getattr(resource, name), (soft, hard))


def execute(program: str) -> str | None:
    """Run a program to its end; why it did not get there, or None."""
    try:
        exec(compile(program, "<program>", "exec"), {})
    except BaseException as error:
        try:
            return f"{type(error).__name__}: {error}"[:MAX_CHARS]
        except BaseException:
            return "an error that cannot be told"
    return None


def main() -> None:
    """Read, limit, execute and tell; nothing of the program runs after that."""
    # Bound before the program can put others in their place.
    write, end, dumps = os.write, os._exit, json.dumps
    asked: dict[str, Any] = json.loads(sys.stdin.buffer.read())
    out = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    limit(asked["limits"])
    error = execute(asked["program"])
    answer = asked["token"] + ("" if error is None else " " + dumps(error)) + "\n"
    write(out, answer.encode("ascii"))
    end(0)


if __name__ == "__main__":
    main()

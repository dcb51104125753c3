"""What is found out about a folder, for people and for programs."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from shards.disk.json_files import Json
from shards.screen.lines import align

# Problems that are told one by one; of more, their number.
MAX_PROBLEMS = 20


@dataclass
class Report:
    """A folder: of which kind it is, what it holds, what is wrong with it, and how to use it."""

    folder: Path
    kind: str
    facts: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    use: list[str] = field(default_factory=list)  # Commands to paste, or lines of Python.

    def lines(self) -> Iterator[str]:
        """The report for people."""
        yield f"{self.folder}: {self.kind}"
        yield from align([(f"  {name}", value) for name, value in self.facts.items()])
        for problem in self.problems[:MAX_PROBLEMS]:
            yield f"  problem: {problem}"
        if len(self.problems) > MAX_PROBLEMS:
            yield f"  and {len(self.problems) - MAX_PROBLEMS:,} problems more"
        if self.use:
            yield "  use it with:"
            yield from (f"    {command}" for command in self.use)

    def json(self) -> Json:
        """The report for programs."""
        return {
            "folder": str(self.folder),
            "kind": self.kind,
            "facts": self.facts,
            "problems": self.problems,
            "use": self.use,
        }

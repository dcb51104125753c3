"""A pattern that was not quoted: the shell puts the files it matches in its place.

Of `--input *.jsonl` an option takes the first file, and the others are words that nobody asked for.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from shards.screen.names import quote

_EXTRA = re.compile(r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)", re.DOTALL)


def explain_extra_files(message: str, words: Sequence[str]) -> str | None:
    """What to say of a command's extra `words` if they are files; None for other mistakes.

    `message` is the parser's, which names them.
    """
    found = _EXTRA.search(message)
    if found is None:
        return None
    extra = f" {found[1]} "
    places = [i for i, word in enumerate(words) if f" {word} " in extra and os.path.lexists(word)]
    if not places or places[0] < 2:
        return None
    option, first = words[places[0] - 2 : places[0]]
    if not option.startswith("--") or not os.path.lexists(first):
        return None
    others = [words[place] for place in places]
    shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
    paths = [Path(word) for word in (first, *others)]
    pattern = paths[0].parent / f"*{paths[0].suffix}"
    if {(path.parent, path.suffix) for path in paths} != {(paths[0].parent, paths[0].suffix)}:
        pattern = Path(os.path.commonpath([os.path.abspath(path.parent) for path in paths])) / "*"
    return (
        f"{option} takes one name, {first}, and found {len(others):,} more behind it: {shown}; if "
        f"the shell put them in the place of a pattern, quote it ({option} {quote(pattern)}), or "
        f"name the folder; several names have {option} before each"
    )

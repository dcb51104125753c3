"""Python's own documentation as documents: text that every machine with this package has.

About 600 documents and 2 MB of English: the help topics of pydoc, and the docstrings of the
standard library, read from its source without importing it.
"""

import ast
import importlib
import json
import os
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

# Folders of the standard library that are tests, tools, or other people's packages.
SKIPPED_FOLDERS = {
    "__pycache__",
    "dist-packages",
    "idlelib",
    "lib2to3",
    "site-packages",
    "test",
    "tests",
    "turtledemo",
}


def write_python_docs(path: Path) -> int:
    """Write the documents as .jsonl, one {"content", "url"} per line; returns how many.

    `url` is the topic's or the module's name. The same Python always writes the same bytes. Raises
    ValueError if this Python has no documentation.
    """
    library = Path(sysconfig.get_path("stdlib"))
    documents = [*read_topics(), *read_docstrings(library)]
    if not documents:
        raise ValueError(
            f"{library}: this Python comes without its documentation; use one that is complete"
        )
    lines = [json.dumps({"content": text, "url": name}) + "\n" for name, text in documents]
    unfinished = path.with_name(f".{path.name}.part")
    unfinished.write_text("".join(lines), encoding="ascii")
    os.replace(unfinished, path)
    return len(documents)


def read_topics() -> Iterator[tuple[str, str]]:
    """Yield the name and text of each help topic; none if Python comes without them."""
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        return
    for name, text in sorted(topics.items()):
        yield f"pydoc_data.topics.{name}", text.strip()


def read_docstrings(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the name of each module below a folder, and its docstrings, in order."""
    for path in find_modules(folder):
        with warnings.catch_warnings(action="ignore"):  # about outdated string escapes
            try:
                module = ast.parse(path.read_bytes())
            except (SyntaxError, ValueError):
                continue
        text = "\n\n".join(collect_docstrings(module))
        if text:
            yield name_module(path.relative_to(folder)), text


def find_modules(folder: Path) -> list[Path]:
    """List the source files below a folder, without the skipped folders, sorted."""
    return sorted(
        path
        for path in folder.rglob("*.py")
        if not SKIPPED_FOLDERS.intersection(path.relative_to(folder).parts[:-1])
    )


def name_module(path: Path) -> str:
    """Return the name that a file is imported by.

    >>> name_module(Path("json/__init__.py")), name_module(Path("json/decoder.py"))
    ('json', 'json.decoder')
    """
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def collect_docstrings(node: ast.AST) -> Iterator[str]:
    """Yield the docstrings of a module, or of what is defined in it, from top to bottom."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        docstring = (ast.get_docstring(node) or "").strip()
        if docstring:
            yield docstring
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.expr):  # no expression contains a definition
            yield from collect_docstrings(child)

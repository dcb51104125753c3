"""Python's own documentation as documents: enough text, the same every time, nothing imported."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from prep.python_docs import collect_docstrings, read_docstrings, write_python_docs
from prep.readers.documents import Piece
from prep.readers.formats import read_documents


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("docs") / "docs.jsonl"
    assert write_python_docs(path) == len(path.read_text().splitlines())
    assert list(path.parent.iterdir()) == [path]
    return path


def test_the_documents_are_many_distinct_and_named(docs: Path) -> None:
    documents = [json.loads(line) for line in docs.read_text().splitlines()]
    names = [document["url"] for document in documents]
    texts = {document["url"]: document["content"] for document in documents}
    assert len(names) == len(set(names)) > 400
    assert sum(map(len, texts.values())) > 1_500_000
    assert "The assert statement" in texts["pydoc_data.topics.assert"].replace('"', "")
    assert texts["json"].startswith("JSON (JavaScript Object Notation)")
    assert "Serialize ``obj`` to a JSON formatted ``str``." in texts["json"]
    assert not any(name.startswith(("test.", "idlelib.", "site-packages")) for name in names)
    assert all(text.strip() for text in texts.values())


def test_prep_reads_them(docs: Path) -> None:
    batches = list(read_documents(Piece(str(docs), "docs.jsonl"), "content"))
    assert sum(len(batch.texts) for batch in batches) > 400
    assert sum(batch.repaired.sum() for batch in batches) == 0


def test_another_process_writes_the_same_bytes_and_imports_nothing_it_reads(
    docs: Path, tmp_path: Path
) -> None:
    program = (
        "import sys; from pathlib import Path;"
        "from prep.python_docs import write_python_docs;"
        f"write_python_docs(Path({str(tmp_path / 'docs.jsonl')!r}));"
        "print([name for name in ('turtle', 'tkinter', 'antigravity') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
    assert (tmp_path / "docs.jsonl").read_bytes() == docs.read_bytes()


def test_docstrings_come_in_the_order_they_stand(tmp_path: Path) -> None:
    source = '''"""Module."""
class Outer:
    """Outer."""
    def method(self):
        """Method."""
        def inner():
            """Inner."""
try:
    import nothing
except ImportError:
    async def fallback():
        """Fallback."""
x = "no docstring"
def plain(): pass
'''
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text(source)
    (tmp_path / "package" / "broken.py").write_text('"""Broken."""\ndef (:')
    (tmp_path / "latin.py").write_bytes(b'# coding: latin-1\n"""caf\xe9 \\d"""')
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "test_it.py").write_text('"""Skipped."""')
    assert list(read_docstrings(tmp_path)) == [
        ("latin", "caf\u00e9 \\d"),
        ("package", "Module.\n\nOuter.\n\nMethod.\n\nInner.\n\nFallback."),
    ]


def test_modules_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in "qwertyuiop":
        (tmp_path / f"{name}.py").write_text(f'"""{name}"""')
    assert [name for name, _ in read_docstrings(tmp_path)] == sorted("qwertyuiop")


def test_a_module_without_docstrings_is_no_document() -> None:
    assert list(collect_docstrings(ast.parse("x = 1"))) == []

"""The project's own promises: who imports whom, what a wheel holds, and data beside code."""

import ast
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = {"shards", "model", "prep", "train", "cli"}
MAY_IMPORT = {
    "shards": {"shards"},
    "model": {"model"},
    "prep": {"prep", "shards"},
    "train": {"train", "shards", "model"},
    "cli": ROOMS,
}
NO_TORCH = {"shards", "prep"}


def python_files() -> list[Path]:
    return sorted([ROOT / "cli.py", *(path for r in ROOMS for path in (ROOT / r).glob("*.py"))])


def imported_packages(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_import_only_what_they_may(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    imported = set(imported_packages(path))
    assert imported & ROOMS <= MAY_IMPORT[room]
    if room in NO_TORCH:
        assert "torch" not in imported
    if room in {"train", "model"}:
        assert not imported & {"datasets", "zstandard"}
    assert "pickle" not in imported or path.name == "seed.py"


def modules_loaded_by(statement: str) -> set[str]:
    script = f"import sys; {statement}; print(*(name.split('.')[0] for name in sys.modules))"
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(process.stdout.split())


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import cli", {"torch", "datasets", "transformers", "pyarrow", "numpy", "tokenizers"}),
        ("import prep.run, prep.quickstart", {"torch", "datasets", "huggingface_hub"}),
        ("import shards.verify, shards.show", {"torch", "datasets"}),
        ("import train.loop, train.__main__", {"datasets", "transformers"}),
        ("import model.console", {"datasets", "zstandard", "transformers", "pyarrow"}),
        ("import train.config, model.config", {"torch"}),
        ("import train.trace", {"torch"}),
    ],
)
def test_imports_stay_light(statement: str, absent: set[str]) -> None:
    assert modules_loaded_by(statement) & absent == set()


def copy_checkout(folder: Path) -> Path:
    """The files of the checkout that git knows or would add, in a repository of their own."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in listed:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    return folder


def write_data(folder: Path) -> None:
    """What `velocity prep --out shards/` leaves in a folder."""
    (folder / "shards" / ".prep" / "units").mkdir(parents=True, exist_ok=True)
    for name in ("train-00000.bin", "train-00000.docs.parquet", "manifest.json", "tokenizer.json"):
        (folder / "shards" / name).write_text("data")
    (folder / "shards" / ".prep" / "plan.json").write_text("data")


def test_git_sees_the_code_in_shards_and_not_the_data(tmp_path: Path) -> None:
    folder = copy_checkout(tmp_path / "checkout")
    write_data(folder)
    (folder / "shards" / "new_module.py").write_text("")
    status = subprocess.run(
        ["git", "status", "--porcelain", "-uall", "shards"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "shards/new_module.py" in status
    assert "shards/format.py" in status
    assert [line for line in status.splitlines() if not line.endswith(".py")] == []


def test_a_wheel_holds_the_code_and_no_data(tmp_path: Path) -> None:
    folder = copy_checkout(tmp_path / "checkout")
    write_data(folder)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(tmp_path)]
    process = subprocess.run([*build, str(folder)], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    [wheel] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    info = f"velocitylm-{version}.dist-info"
    assert tops == {"cli.py", "prep", "train", "model", "shards", info}
    assert {name for name in names if name.startswith("shards/")} == {
        f"shards/{path.name}" for path in (ROOT / "shards").glob("*.py")
    }
    assert {"prep/gpt2/vocab.bpe", "prep/gpt2/LICENSE", "train/configs/tiny.yaml"} <= set(names)


def test_data_in_the_current_folder_does_not_shadow_the_package(tmp_path: Path) -> None:
    """As `torchrun -m train` does it: the current folder comes first on the path."""
    write_data(tmp_path)
    script = "import shards.format, sys; print(shards.format.__file__)"
    process = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert process.stdout.strip() == str(ROOT / "shards" / "format.py"), process.stderr


def test_no_function_or_file_outgrows_its_idea() -> None:
    """60 lines a function's body, 330 a file."""
    too_long = []
    for path in python_files():
        source = path.read_text(encoding="utf-8")
        if len(source.splitlines()) > 330:
            too_long.append(str(path))
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or 0) - node.body[0].lineno + 1
                if length > 60:
                    too_long.append(f"{path}: {node.name} has {length} lines")
    assert too_long == []

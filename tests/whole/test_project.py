"""The project's own promises: who imports whom, what a wheel holds, and data beside code."""

import ast
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

from prep.request import ENGINES

ROOT = Path(__file__).parents[2]
ROOTS = ("shards", "model", "prep", "train")
# Which rooms the files of a room may import; a room is a package, without its sub-packages.
# docs/design.md says why.
SHARDS = {
    "shards",
    *(f"shards.{room}" for room in ("screen", "disk", "entry", "near")),
    *(f"shards.{room}" for room in ("inspect", "edit", "exchange", "index", "packing", "where")),
    *(f"shards.{room}" for room in ("mixture", "chat")),
}
# What is below the format of a set.
BASE = {"shards.screen", "shards.disk"}
MODEL = {
    "model",
    "model.steps",
    "model.chat",
    "model.logits",
    "model.checkpoints",
    "model.adapters",
    "model.convert",
    "model.decode",
    "model.sample",
    "model.export",
}
READING = {"prep.remote", "prep.sources", "prep.readers", "prep.files"}
ENCODING = {"prep.text", "prep.tokenizer"}
WORKING = {f"prep.{room}" for room in ("chat", "units", "copies", "planning", "engines", "foreign")}
PREP = WORKING | READING | ENCODING
STEPPING = {"train.ranks", "train.step"}
TRAIN = {
    "train",
    *(
        f"train.{room}"
        for room in (
            "start",
            "begin",
            "chat",
            "preferences",
            "checkpoints",
            "tracing",
            "reports",
            "proof",
            "tuning",
        )
    ),
    "train.plan",
    "train.inspect",
    "train.page",
    "train.publish",
    "train.words",
    "train.evaluation",
    "train.evaluation.code",
    *STEPPING,
}
MAY_IMPORT = {
    "shards.screen": set[str](),
    "shards.disk": {"shards.screen"},
    "shards.entry": BASE,
    "shards": BASE,
    "shards.near": {"shards", *BASE},
    "shards.chat": {"shards", *BASE},
    "shards.where": {"shards", *BASE},
    "shards.mixture": {"shards", "shards.where", *BASE},
    "shards.inspect": {"shards"}
    | {f"shards.{room}" for room in ("chat", "near", "index", "where", "mixture")}
    | BASE,
    "shards.packing": {"shards", *BASE},
    "shards.edit": {"shards", "shards.packing", *BASE},
    "shards.index": {"shards", *BASE},
    "shards.exchange": {"shards", "shards.edit", "shards.index", *BASE},
    "model": {"model.logits"},
    "model.logits": {"model"},
    "model.checkpoints": {"model"},
    "model.adapters": {"model", "model.checkpoints"},
    "model.convert": {"model", "model.checkpoints"},
    "model.steps": {"model"},
    "model.decode": {"model", "model.steps", "model.checkpoints"},
    "model.export": {"model", "model.adapters", "model.chat", "model.checkpoints"}
    | {"model.export.gguf"},
    "model.export.gguf": {"model", "model.checkpoints", "model.export"},
    "model.sample": {"model", "model.chat", "model.checkpoints", "model.decode"},
    "model.chat": {"model.checkpoints"},
    "model.serve.wire": set(),
    "model.serve.texts": {
        *("model.serve", "model.serve.wire", "model.chat", "model.decode", "model.checkpoints"),
    },
    "model.serve": {f"model.serve.{room}" for room in ("page", "texts", "wire")}
    | {"model.chat", "model.decode", "model.checkpoints", "model"},
    "model.serve.page": {"model.serve", "model.serve.wire"},
    "prep.files": SHARDS,
    "prep.readers": {"prep.files", *SHARDS},
    "prep.sources": {"prep.files", "prep.readers", *SHARDS},
    "prep.remote": {"prep.sources", "prep.files", "prep.readers", *SHARDS},
    "prep.tokenizer": {"model.chat"} | READING | SHARDS,
    "prep.text": {"prep.tokenizer"} | READING | SHARDS,
    "prep.chat": {"model.chat"} | ENCODING | READING | SHARDS,
    "prep.units": {"prep.chat"} | ENCODING | READING | SHARDS,
    "prep.copies": {"prep.units", "prep.tokenizer"} | READING | SHARDS,
    "prep.planning": {"prep.chat", "prep.units"} | ENCODING | READING | SHARDS,
    "prep.engines": {"prep.planning", "prep.units"} | READING | SHARDS,
    "prep.foreign": {"prep.planning", "prep.units"} | ENCODING | READING | SHARDS,
    "prep.vocabulary": {"prep.engines"} | ENCODING | READING | SHARDS,
    "prep": PREP | SHARDS,
    "train.reports": {"shards", *BASE},
    "train.words": {"shards", *BASE},
    "train.ranks": BASE,
    "train.step": {"train.ranks", "model", *BASE},
    "train.checkpoints": STEPPING | SHARDS | MODEL,
    "train.chat": SHARDS | MODEL,
    "train.begin": {"train.checkpoints", "train.ranks"} | SHARDS | MODEL,
    "train.preferences": {"train.begin", "train.ranks"} | SHARDS | MODEL,
    "train.tracing": {"train.checkpoints"} | SHARDS | MODEL,
    "train.page": {"train.tracing", "train.checkpoints", "train.reports"} | SHARDS | MODEL,
    "train.publish": {"train.page", "train.checkpoints", "train.reports"} | SHARDS | MODEL,
    "train.evaluation": {
        f"train.{room}"
        for room in ("evaluation.code", "start", "chat", "words", "checkpoints", "ranks")
    }
    | (SHARDS | MODEL),
    "train.evaluation.code": {"train.evaluation"} | SHARDS | MODEL,
    "train.start": STEPPING | SHARDS | MODEL,
    "train.plan": {"train.begin", "train.start"} | SHARDS | MODEL,
    "train.inspect": {"train.checkpoints", "train.reports", "train.start"} | SHARDS | MODEL,
    "train.proof": {f"train.{r}" for r in ("begin", "checkpoints", "reports", "start", "step")}
    | (SHARDS | MODEL),
    "train.tuning": {
        "train.begin",
        "train.checkpoints",
        "train.page",
        "train.proof",
        "train.reports",
        "train.start",
    }
    | (SHARDS | MODEL),
    "train": {
        f"train.{room}"
        for room in ("start", "begin", "chat", "words", "checkpoints", "reports", "evaluation")
    }
    | {"train.preferences"}
    | STEPPING
    | (SHARDS | MODEL),
    "cli": {
        *("prep", "prep.foreign", "prep.vocabulary", "train", "train.evaluation"),
        *(f"model.{room}" for room in ("adapters", "convert", "export", "sample", "serve")),
        *("shards", "shards.entry", "shards.screen"),
    },
}
# The faces of a package: each may import all rooms of it.
FACES = {
    "shards.commands": SHARDS,
    # They take models of the Hub by their names.
    "model.checkpoints.hub": {"prep.remote", "shards.screen"},
    "model.generate": MODEL | {"shards.screen"},
    # The original VelocityLM's checkpoints have GPT-2's tokenizer, which prep makes.
    "model.sample.options": MODEL | {"shards.screen", "shards.entry", "prep.tokenizer"},
    "model.sample.command": MODEL | {"shards.screen", "shards.entry"},
    "model.adapters.command": MODEL | {"shards.screen"},
    "model.convert.command": MODEL | {"shards.screen", "shards.entry", "prep.tokenizer"},
    # It certifies with Python's documentation.
    "model.export.command": MODEL | {"shards.screen", "shards.entry", "prep"},
    # Its page shows where a text is in the set, and when a run read it.
    "model.serve.command": MODEL | SHARDS | {"model.serve", "train.tracing"},
    "train.commands": SHARDS | TRAIN | {"model.checkpoints"},
    # They say with which command to train.
    "prep.command": PREP | SHARDS | {"train.start"},
    "prep.quickstart": PREP | SHARDS | {"train.start"},
}
# What rooms that come before the package's own files may import of these.
SHARED = {
    "prep.readers": {"prep.policy", "prep.request"},
    "prep.sources": {"prep.policy", "prep.request"},
    "prep.remote": {"prep.request"},
    "prep.text": {"prep.policy"},
    "prep.chat": {"prep.policy", "prep.request"},
    "prep.units": {"prep.checks", "prep.policy"},
    "prep.planning": {"prep.checks", "prep.policy", "prep.request"},
    "prep.engines": {"prep.request"},
    "prep.foreign": {"prep.checks", "prep.manifest", "prep.policy"},
    "prep.vocabulary": {"prep.checks", "prep.policy", "prep.request"},
    "train.ranks": {"train.config"},
    "train.step": {"train.config", "train.training_config"},
    "train.checkpoints": {"train.config", "train.training_config", "train.settings"},
    "train.start": {"train.config", "train.training_config", "train.settings"},
    "train.plan": {"train.config", "train.training_config", "train.settings", "train.gpus"},
    "train.begin": {"train.config"},
    "train.preferences": {"train.config", "train.targets"},
    "train.tracing": {"train.config"},
    "train.proof": {"train.config", "train.settings"},
    "train.tuning": {"train.config", "train.settings", "train.evaluate"},
    "train.inspect": {"train.config", "train.settings"},
    "train.reports": {"train.config", "train.training_config", "train.settings", "train.gpus"},
    "train.page": {"train.config", "train.settings"},
    "train.publish": {"train.config", "train.settings"},
    "train.evaluation": {"train.config"},
}
NO_TORCH = {"shards", "prep"}


def python_files() -> list[Path]:
    return sorted([ROOT / "cli.py", *(path for r in ROOTS for path in (ROOT / r).rglob("*.py"))])


def name_module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_module(path): path for path in python_files()}
# What is not in the wheel is held to the same order in its folders and files.
BENCHMARKS = sorted((ROOT / "benchmarks").rglob("*.py"))


def name_room(module: str) -> str:
    """The package that a module is a file of."""
    is_package = MODULES[module].name == "__init__.py"
    return module if is_package else module.rpartition(".")[0] or module


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            for alias in node.names:  # `from prep import run` means the module prep.run.
                full = f"{module}.{alias.name}"
                yield full if full in MODULES else module


def find_wrong_imports(module: str) -> set[str]:
    """The modules of ours that a module imports and may not."""
    room = name_room(module)
    may = FACES.get(module, MAY_IMPORT[room]) | {room}
    shared = SHARED.get(room)
    wrong = set()
    for found in set(imported_modules(MODULES[module])) & MODULES.keys():
        package = room.partition(".")[0]
        if shared is not None and name_room(found) == package and room != package:
            is_right = found in shared
        else:
            is_right = name_room(found) in may
        # What a user types is called by the command line alone.
        if not is_right or (found.endswith((".commands", ".command")) and module != "cli"):
            wrong.add(found)
    return wrong


@pytest.mark.parametrize("module", MODULES)
def test_rooms_import_only_what_they_may(module: str) -> None:
    path = MODULES[module]
    assert find_wrong_imports(module) == set()
    packages = {name.partition(".")[0] for name in imported_modules(path)}
    root = module.partition(".")[0]
    if root in NO_TORCH:
        assert "torch" not in packages
    if root in {"train", "model"}:
        assert not packages & {"datasets", "zstandard"}
    assert not packages & {"benchmarks", "tests"}
    assert "pickle" not in packages or module == "model.checkpoints.pickle_file"


def test_a_request_for_prep_is_read_before_anything_is_loaded() -> None:
    modules = ("prep.request", "prep.policy", "prep.checks")
    ours = {found for m in modules for found in imported_modules(MODULES[m])} & MODULES.keys()
    assert ours == {
        "prep.policy",
        "prep.checks",
        "shards.disk.json_files",
        "shards.screen.names",
        "shards.screen.url",
        "shards.disk.part",
    }


def test_every_rule_is_about_a_room_that_is_there_and_needs_it() -> None:
    rooms = {name_room(module) for module in MODULES}
    assert MAY_IMPORT.keys() == rooms
    assert FACES.keys() <= MODULES.keys()
    for room, shared in SHARED.items():
        files = [path for module, path in MODULES.items() if name_room(module) == room]
        assert shared <= {found for path in files for found in imported_modules(path)}, room


def test_every_engine_is_there() -> None:
    for module in ENGINES.values():
        assert name_room(module) == "prep.engines"
        assert hasattr(import_module(module), "start")


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {
        module: set(imported_modules(path)) & MODULES.keys() - {module}
        for module, path in MODULES.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' <- '.join(error.args[1])}")


def test_the_first_line_of_a_docstring_is_whole() -> None:
    """docs/map.md shows it alone."""
    for path in [*python_files(), *BENCHMARKS]:
        docstring = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
        if path.name != "__init__.py":
            assert docstring.partition("\n")[0].endswith("."), path


def test_every_room_says_what_it_is_for_and_is_seen_by_git() -> None:
    paths = [*python_files(), *BENCHMARKS]
    rooms = {path.parent for path in paths if path.parent != ROOT}
    for room in rooms:
        docstring = ast.get_docstring(ast.parse((room / "__init__.py").read_text("utf-8")))
        assert docstring, f"{room}: its __init__.py has no sentence"
        files = [path for path in room.glob("*.py") if path.name != "__init__.py"]
        assert 2 <= len(files) <= 15, f"{room} has {len(files)} files"
    ignored = subprocess.run(
        ["git", "check-ignore", "--no-index", *map(str, paths)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (ignored.returncode, ignored.stdout) == (1, ""), ignored  # 1: none of them.


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
        ("import shards.inspect.verify, shards.inspect.show", {"torch", "datasets"}),
        ("import train.loop, train.__main__", {"datasets", "transformers"}),
        ("import model.sample.console", {"datasets", "zstandard", "transformers", "pyarrow"}),
        ("import train.settings, model.config", {"torch"}),
        ("import train.start.choose", {"torch", "numpy", "pyarrow"}),
        ("import train.tracing.runs, train.inspect.folders, train.commands", {"torch"}),
        ("import train.publish.publish", {"torch"}),
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
    names = ("train-00000.bin", "train-00000.docs.parquet", "manifest.json", "tokenizer.json")
    for name in (*names, "chat_template.jinja"):
        (folder / "shards" / name).write_text("data")
    (folder / "shards" / ".prep" / "plan.json").write_text("data")


def test_git_sees_the_code_in_shards_and_not_the_data(tmp_path: Path) -> None:
    folder = copy_checkout(tmp_path / "checkout")
    write_data(folder)
    (folder / "shards" / "new_module.py").write_text("")
    (folder / "shards" / "edit" / "another.py").write_text("")
    status = subprocess.run(
        ["git", "status", "--porcelain", "-uall", "shards"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "shards/new_module.py" in status
    assert "shards/edit/another.py" in status
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
    code = {str(path.relative_to(ROOT)) for path in python_files()}
    assert {name for name in names if name.endswith(".py")} == code
    assert [name for name in names if name.startswith("shards/") and name not in code] == []
    page = {str(path.relative_to(ROOT)) for path in (ROOT / "model/serve/page").glob("*.*")}
    assert len(page) > 6
    assert page <= set(names)
    assert {"prep/gpt2/vocab.bpe", "prep/gpt2/LICENSE", "train/configs/tiny.yaml"} <= set(names)
    assert "model/step.c" in names


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
    for path in [*python_files(), *BENCHMARKS]:
        source = path.read_text(encoding="utf-8")
        if len(source.splitlines()) > 330:
            too_long.append(str(path))
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or 0) - node.body[0].lineno + 1
                if length > 60:
                    too_long.append(f"{path}: {node.name} has {length} lines")
    assert too_long == []

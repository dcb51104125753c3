"""Numbers that nobody should type: refused at once, in a line that names the option, or taken."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.disk.json_files import hash_canonical
from shards.documents import Sidecars
from shards.reader import open_shards
from tests.commands import velocity
from tests.texts import make_texts, prepare_quietly, write_jsonl

ODD = ("-1", "0", "nan", "inf", "1e999", "", "1" + "0" * 30, "9223372036854775808", "1" * 5000)
# Of these, exact fractions would take all memory, or all time.
FRACTIONS = (*ODD, "1e-999999999", "1E+999999999", "1e-٩٩٩٩٩٩٩٩٩", "1e-9_999_999_99", "1/0", "0x1")
TINY = ("--config", "tiny", "data.max_seq_length=16")


@pytest.fixture(scope="module")
def finished_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    source = write_jsonl(folder / "source.jsonl", [*make_texts(30)])
    prepare_quietly(folder / "shards", source, validation_fraction="0.2")
    return folder / "shards"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "source.jsonl", [*make_texts(3)])


def check_refused(option: str, *command: object) -> None:
    """Refused within seconds: in one line of ours, or in the lines that describe the option."""
    started = time.process_time()
    code, _, errors = velocity(*command)
    assert time.process_time() - started < 10
    assert code in (1, 2), (command, errors)
    assert option in errors
    if code == 1:
        assert errors.startswith("velocity: ")
        assert errors.count("\n") == 1
        assert len(errors) < 300


@pytest.mark.parametrize("option", ["--validation-fraction", "--sample"])
@pytest.mark.parametrize("number", [n for n in FRACTIONS if n != "0"])
def test_a_fraction_that_is_none_is_refused(
    tmp_path: Path, source: Path, finished_set: Path, option: str, number: str
) -> None:
    out = tmp_path / "out"
    check_refused(option, "prep", "--out", out, "--input", source, f"{option}={number}")
    assert not out.exists()
    more = ("prep", "--append", "--out", finished_set, "--input", source)
    check_refused(option, *more, f"{option}={number}")
    if option == "--validation-fraction":
        check_refused(option, "shards", "import", "--out", out, source, f"{option}={number}")
    assert not out.exists()


@pytest.mark.parametrize("number", ODD)
@pytest.mark.parametrize(
    "option",
    [
        "--shard-tokens",
        "--max-documents",
        "--max-tokens",
        "--unit-bytes",
        "--min-chars",
        "--max-chars",
        "--workers",
        "--part",
    ],
)
def test_a_number_that_prep_cannot_count_to_is_refused(
    tmp_path: Path, source: Path, option: str, number: str
) -> None:
    given = f"{option}={number}/3" if option == "--part" else f"{option}={number}"
    if given == "--part=0/3":
        return
    check_refused(option, "prep", "--out", tmp_path / "out", "--input", source, given)
    assert not (tmp_path / "out").exists()


def test_the_largest_numbers_are_as_good_as_none(tmp_path: Path, source: Path) -> None:
    largest = [f"--{name}={1 << 62}" for name in ("shard-tokens", "max-documents", "max-tokens")]
    largest += [f"--unit-bytes={1 << 62}", f"--max-chars={1 << 62}", "--min-chars=1"]
    given = ("--input", source, "--workers", 1, "--validation-fraction", 0)
    code, _, errors = velocity("prep", "--out", tmp_path / "out", *given, *largest)
    assert code == 0, errors
    code, said, _ = velocity("shards", "info", tmp_path / "out")
    assert "3 documents, 1 shards" in said
    code, _, _ = velocity("prep", "--out", tmp_path / "none", *given, f"--min-chars={1 << 62}")
    assert code == 0
    assert "0 documents" in velocity("shards", "info", tmp_path / "none")[1]


def commands(folder: Path, number: str) -> Iterator[tuple[object, ...]]:
    """Each number of the commands for sets, and then what names it."""
    trace = ("shards", "trace", folder, *TINY)
    yield "shards", "show", folder, f"--document={number}", "document"
    yield "shards", "show", folder, f"--start={number}", "--start"
    yield "shards", "show", folder, "--start=0", f"--tokens={number}", "--tokens"
    yield "shards", "stats", folder, f"--top={number}", "--top"
    yield *trace, f"--step={number}", "step"
    yield *trace, "--step=1", f"--ranks={number}", "--ranks"
    yield "shards", "push", folder, folder.parent / "away", f"--workers={number}", "--workers"
    yield "shards", "pull", folder, folder.parent / "away", f"--workers={number}", "--workers"
    yield "shards", "pull", folder, folder.parent / "away", f"--part={number}/2", "--part"


@pytest.mark.parametrize("number", ODD)
def test_a_number_that_no_set_has_is_refused(finished_set: Path, number: str) -> None:
    # What is there is shown of a huge number, and 0 is a number of documents and positions.
    fine = {"--document", "--start", "--top", "--part"} if number == "0" else set()
    fine |= (
        {"--tokens", "--top"} if number.isdecimal() and number > "0" and len(number) < 99 else set()
    )
    for *command, named in commands(finished_set, number):
        option = str(command[-1]).partition("=")[0]
        if option in fine:
            if option != "--part":
                code, _, errors = velocity(*command)
                assert code == 0, errors
            continue
        check_refused(str(named), *command)
    assert not (finished_set.parent / "away").exists()


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("training.batch_size_per_device=1000000000", "training.batch_size_per_device"),
        ("training.gradient_accumulation_steps=1000000000000", "gradient_accumulation_steps"),
        ("training.num_training_steps=1000000000000000000000", "training.num_training_steps"),
        ("data.max_seq_length=1000000000000000000000", "data.max_seq_length"),
    ],
)
def test_a_run_that_nobody_has_is_not_traced(finished_set: Path, setting: str, named: str) -> None:
    check_refused(named, "shards", "trace", finished_set, *TINY, setting, "--step=1")


def test_a_document_is_not_looked_for_in_a_billion_epochs(finished_set: Path) -> None:
    doc_hash = Sidecars(open_shards(finished_set), "train").at_index(0).doc_hash
    trace = ("shards", "trace", finished_set, *TINY, "--doc-hash", doc_hash)
    check_refused(
        "ask for single steps with --step", *trace, "training.num_training_steps=1000000000"
    )
    assert velocity(*trace, "training.num_training_steps=100")[0] == 0


def test_a_stored_plan_with_such_a_number_is_refused(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    velocity("prep", "--out", out, "--input", source, "--workers", 1, "--part", "0/2")
    path = out / ".prep/plan.json"
    plan = json.loads(path.read_text())
    plan["content"]["policy"]["validation_fraction"] = "1e-999999999"
    plan["plan_id"] = hash_canonical(plan["content"])
    path.write_text(json.dumps(plan))
    check_refused(
        "plan.json: is damaged, or from another version", "prep", "--out", out, "--finish"
    )
    shutil.rmtree(out)

"""Options as fields of dataclasses."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from shards.entry.options import takes_options


@dataclass(frozen=True)
class Inner:
    size: Annotated[int, typer.Option(help="How large.")] = 3
    names: Annotated[tuple[str, ...], typer.Option("--name", help="May be repeated.")] = ("a",)


@dataclass(frozen=True)
class Outer:
    out: Annotated[str, typer.Option(help="Where to.")]
    inner: Inner = field(default_factory=Inner)
    stop: Annotated[str | Sequence[str] | None, typer.Option(help="Where to end.")] = None
    hidden: int = 7


def run(*arguments: str) -> tuple[int, str, list[tuple[Outer, bool]]]:
    """Exit code, what was printed, and what the command was called with."""
    calls: list[tuple[Outer, bool]] = []

    @takes_options
    def command(outer: Outer, loud: bool = False) -> None:
        calls.append((outer, loud))

    app = typer.Typer(rich_markup_mode=None)
    app.command()(command)
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output, calls


def test_what_is_not_given_has_the_default_of_its_field() -> None:
    assert run("--out", "x") == (0, "", [(Outer("x"), False)])


def test_what_is_given_arrives_in_its_field() -> None:
    words = ["--out", "x", "--size", "5", "--name", "b", "--name", "c", "--stop", "!", "--loud"]
    _, _, calls = run(*words)
    assert calls == [(Outer("x", Inner(5, ("b", "c")), ("!",)), True)]


def test_a_field_without_a_default_must_be_given() -> None:
    code, said, calls = run()
    assert (code, calls) == (2, [])
    assert "Missing option '--out'" in said


def test_help_has_the_options_in_the_order_of_the_fields() -> None:
    _, said, _ = run("--help")
    places = [said.index(word) for word in ("--out", "--size", "--name", "--stop", "--loud")]
    assert places == sorted(places)
    assert "How large.  [default: 3]" in said
    assert "hidden" not in said


def test_what_cannot_be_an_option_is_found_when_the_command_is_made() -> None:
    @dataclass(frozen=True)
    class Numbers:
        counts: Annotated[tuple[int, ...], typer.Option()] = ()

    def command(numbers: Any) -> None: ...

    command.__annotations__["numbers"] = Numbers
    with pytest.raises(AssertionError, match="only strings"):
        takes_options(command)


@dataclass(frozen=True)
class Places:
    out: Annotated[Path, typer.Option(help="Where to.")]
    other: Annotated[Path | None, typer.Option(help="Or where.")] = None
    parsed: Annotated[Path, typer.Option(parser=lambda text: Path(text) / "in")] = Path("x")


def call_with_places(*arguments: str) -> list[tuple[Places, Path]]:
    calls: list[tuple[Places, Path]] = []

    @takes_options
    def command(
        places: Places, more: Annotated[Path, typer.Option(help="And more.")] = Path("m")
    ) -> None:
        calls.append((places, more))

    app = typer.Typer(rich_markup_mode=None)
    app.command()(command)
    result = CliRunner().invoke(app, list(arguments))
    if result.exception:
        raise result.exception
    return calls


def test_paths_arrive_as_paths() -> None:
    expected = (Places(Path("a"), Path("b"), Path("c/in")), Path("d"))
    words = ("--out", "a", "--other", "b", "--parsed", "c", "--more", "d")
    assert call_with_places(*words) == [expected]
    assert call_with_places("--out", "a") == [(Places(Path("a"), None, Path("x/in")), Path("m"))]


@pytest.mark.parametrize("value", ["", " ", "\n"])
@pytest.mark.parametrize("option", ["--out", "--other", "--parsed", "--more"])
def test_an_empty_path_is_not_the_current_folder(option: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{option} is empty; name what is meant, or leave"):
        call_with_places("--out", "a", option, value)

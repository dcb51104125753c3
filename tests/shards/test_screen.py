"""What reaches the screen: one line for a line, and nothing that a terminal obeys."""

import io
import multiprocessing
import os
import subprocess
import sys
import threading
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from prep.engines.contract import flatten
from shards.entry.failure import describe_error, has_no_reader, prepare_screen, reporting
from shards.screen.lines import ScreenLine, open_output, put, put_text, say
from shards.screen.names import escape, escape_line, quote

# Clears the screen, rings, sets a title with C1 codes, overwrites a line, turns the writing, and
# breaks lines in six ways; the last is a byte that is not UTF-8.
HOSTILE = "a\x1b[2J\x07\x9d0;x\x9c\x7f\rb\u202ec\u2066d\u2028e\u2029f\x85g\x0bh\x0ci\x00\udce9"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Gone(io.StringIO):
    """A terminal that was closed, or a log on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")


def assert_obedient(text: str, end: str = "\n") -> None:
    """Of what is not shown, only what ends our own lines."""
    assert text.removesuffix(end).isprintable(), repr(text)


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_lines_are_one_line_and_give_no_orders(stream: type[io.StringIO]) -> None:
    text = f"{HOSTILE}\nvelocity: all is well\ttab"
    for show in (say, put):
        out = stream()
        with redirect_stdout(out), redirect_stderr(out):
            show(text)
        assert_obedient(out.getvalue())
        assert "\\x1b[2J" in out.getvalue()
        assert "\\nvelocity" in out.getvalue()


def test_a_progress_line_gives_no_orders_but_its_own() -> None:
    out = Terminal()
    line = ScreenLine(out)
    line.draw(HOSTILE)
    line.say(HOSTILE)
    assert out.getvalue().count("\r") == 3
    assert_obedient(out.getvalue().replace("\r", ""))


def test_texts_are_themselves_in_a_pipe_and_escaped_on_a_terminal() -> None:
    text = f"one\r\n\ttwo, \u0645\u200c\u0646\n{HOSTILE.removesuffix(chr(0xDCE9))}"
    pipe, terminal = io.StringIO(newline=""), Terminal(newline="")
    for out in (pipe, terminal):
        with redirect_stdout(out):
            put_text(text)
            open_output()(text)
    assert pipe.getvalue() == f"{text}\n{text}"
    shown = terminal.getvalue()
    assert shown.startswith("one\r\n\ttwo, \u0645\u200c\u0646\na\\x1b[2J\\x07\\x9d0;x")
    for line in shown.replace("\u200c", "").replace("\t", "").split("\n"):
        assert_obedient(line, "\r")


def test_an_encoding_that_lacks_a_character_ends_nothing() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, "cp1252")
    with redirect_stdout(stream):
        put("caf\u00e9 \u2713")
        put_text("\u2713")
    assert raw.getvalue() == b"caf\xe9 \\u2713\n\\u2713\n"


def test_work_goes_on_where_nobody_can_be_told() -> None:
    line = ScreenLine(Gone())
    with redirect_stderr(Gone()):
        say("nobody hears this")
    line.draw("or this")
    line.say("or that")


@pytest.mark.parametrize(
    "name", ["a b", "$(id)", "a;b", "-x", "it's", "a\\'\n\x1b\t", "\udce9\x85\u3000", ""]
)
def test_a_quoted_name_is_the_same_name_in_a_shell(name: str) -> None:
    quoted = quote(name)
    assert quoted.isprintable()
    script = f"printf %s {quoted}"
    said = subprocess.run(["bash", "-c", script], capture_output=True, env={"LC_ALL": "C.UTF-8"})
    expected = os.fsencode(f"./{name}" if name.startswith("-") else name)
    assert said.stdout == expected


def test_escapes_are_those_of_python() -> None:
    assert escape("a\rb\r\nc\x1b") == "a\\rb\r\nc\\x1b"
    assert escape_line("\u200b\n\udcff\ud800") == "\\u200b\\n\\xff\\ud800"


def fail_with(error: Exception, debug: bool = False) -> str:
    """What a command says that ends with an error."""
    said = io.StringIO()
    with redirect_stderr(said), pytest.raises(SystemExit) as end, reporting(debug):
        raise error
    assert end.value.code == 1
    return said.getvalue()


@pytest.mark.parametrize(
    "error",
    [
        KeyError("totals"),
        RecursionError("maximum recursion depth exceeded"),
        MemoryError(),
        OverflowError("int too large to convert\nto C long"),
        NotImplementedError(f"of a library: {HOSTILE}"),
        ValueError(),
    ],
)
def test_an_unexpected_error_is_one_line_that_names_its_kind(error: Exception) -> None:
    said = fail_with(error)
    assert said.startswith(f"velocity: unexpected {type(error).__name__}")
    assert "--debug" in said
    assert_obedient(said)


def test_an_expected_error_is_told_as_it_is_and_not_at_any_length() -> None:
    assert fail_with(ValueError("a.txt: odd")) == "velocity: a.txt: odd\n"
    assert fail_with(FileNotFoundError(2, "No such file", b"caf\xe9\n")) == (
        "velocity: caf\\xe9\\n: No such file\n"
    )
    long = fail_with(ValueError("[" * 100_000))
    assert len(long) < 3000
    assert long.endswith("... (98,000 more characters)\n")


def test_the_traceback_gives_no_orders_and_shows_no_keys() -> None:
    prepare_screen(["velocity", "s3://AKIA:SECR/ETKEY@bucket"])
    try:
        raise ValueError("Cannot parse 's3://AKIA:SECR/ETKEY@bucket'")
    except ValueError as first:
        error = KeyError(f"\x1b[2J SECR/ETKEY of {first}")
        error.__cause__ = first
    said = fail_with(error, debug=True)
    assert "Traceback" in said
    assert "ETKEY" not in said
    assert_obedient(said.replace("\n", "").replace("\t", ""))
    assert said.splitlines()[-1].startswith("velocity: unexpected KeyError")


def test_debug_shows_where_a_worker_failed() -> None:
    try:
        {}["totals"]
    except KeyError as error:
        ours, theirs = multiprocessing.Pipe()
        theirs.send(flatten(error))
        said = fail_with(ours.recv(), debug=True)
    assert '{}["totals"]' in said
    assert said.splitlines()[-1].startswith("velocity: unexpected RuntimeError: KeyError: 'totals'")


def test_a_key_is_hidden_before_a_long_error_is_cut() -> None:
    prepare_screen(["velocity", "s3://AKIA:SECRETKEY@bucket", "s3://AKIA:caf\udce9@bucket"])
    said = fail_with(ValueError("." * 1995 + "SECRETKEY"))
    assert "SECR" not in said
    assert "caf" not in fail_with(ValueError("caf\udce9"))


def test_only_who_is_asked_to_tells_an_error() -> None:
    said = io.StringIO()
    with redirect_stderr(said), pytest.raises(SystemExit), reporting(False, is_told=False):
        raise ValueError("the first rank says this")
    assert said.getvalue() == ""


def test_interrupts_and_exits_pass() -> None:
    for kind in (KeyboardInterrupt, SystemExit):
        with pytest.raises(kind), reporting(False):
            raise kind


def test_a_thread_that_fails_is_told_in_one_line() -> None:
    said = io.StringIO()
    prepare_screen([])

    def fail() -> None:
        raise KeyError(HOSTILE)

    with redirect_stderr(said):
        thread = threading.Thread(target=fail, name="upload")
        thread.start()
        thread.join()
    assert said.getvalue().startswith("velocity: upload: unexpected KeyError")
    assert_obedient(said.getvalue())


def test_a_pipe_that_nobody_reads_is_told_from_others() -> None:
    assert not has_no_reader(io.StringIO())
    ours, theirs = os.pipe()
    with os.fdopen(theirs, "w") as stream:
        assert not has_no_reader(stream)
        os.close(ours)
        assert has_no_reader(stream)
    assert describe_error(ConnectionError("reset by peer")) == "reset by peer"


def test_output_that_is_lost_at_the_end_is_told() -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(28, "No space left on device")

    said = io.StringIO()
    with (
        redirect_stderr(said),
        redirect_stdout(Full()),
        pytest.raises(SystemExit) as end,
        reporting(False),
    ):
        print("the last piece")
    assert end.value.code == 1
    assert said.getvalue().startswith("velocity: No space left on device")


def test_a_command_whose_reader_leaves_ends_without_a_word(small_shards: Path) -> None:
    command = [sys.executable, "-m", "cli", "shards", "info", str(small_shards)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141

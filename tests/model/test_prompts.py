"""Prompts are read as the text they are or refused, and no text is lost on its way out."""

import io
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model.decode.generator import Generator
from model.decode.penalties import adjust_logits
from model.decode.sampler import choose_tokens, find_candidates
from model.decode.settings import Settings, read_typed
from model.device import choose_device
from model.sample.console import write_texts
from model.sample.options import Prompts
from model.sample.prompts import cut_lines, decode_text, read_prompts, read_text
from tests.model.test_generate import make_scripted
from tests.model.test_sampler import make_draft
from tests.tiny import CONFIG, make_model, make_tokenizer

TEXT = "Once upon a time, naïve 北京 🙂"


def read(**source: Any) -> list[str]:
    """Prompts of which nothing had to be told."""
    told: list[str] = []
    prompts = read_prompts(Prompts(**source), told.append)
    assert told == []
    return prompts


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-be", "utf-32-be"]
)
def test_a_prompt_file_with_a_mark_is_the_text_it_says(tmp_path: Path, encoding: str) -> None:
    mark = "\ufeff" if encoding.endswith("-be") else ""
    (tmp_path / "p").write_bytes((mark + TEXT + "\r\n").encode(encoding))
    assert read(prompt_file=str(tmp_path / "p")) == [TEXT]
    assert read(prompt_lines=str(tmp_path / "p")) == [TEXT]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("caf\xe9 au lait".encode("latin-1"), "byte 3, on line 1, is 0xe9, which is not UTF-8"),
        ("a\nb\nna\xefve".encode("cp1252"), "byte 6, on line 3, is 0xef"),
        ("日本".encode("shift-jis"), "byte 0, on line 1, is 0x93"),
        (TEXT.encode()[:-1], "is 0xf0, which is not UTF-8"),
        (b"\xff\xfeO\x00n\x00c", "byte 6, on line 1, is 0x63, which is not UTF-16-LE"),
        (b"\xff\xfe\x00\xd8a\x00", "byte 2, on line 1, is 0x00, which is not UTF-16-LE"),
        ("Once upon".encode("utf-16-le"), "in UTF-16 or UTF-32 without a byte order mark"),
        ("Once upon".encode("utf-16-be"), "in UTF-16 or UTF-32 without a byte order mark"),
        ("Once 北 upon".encode("utf-32-be"), "in UTF-16 or UTF-32 without a byte order mark"),
    ],
)
def test_other_bytes_are_refused_with_their_place(
    tmp_path: Path, data: bytes, message: str
) -> None:
    (tmp_path / "p").write_bytes(data)
    for option in ("prompt_file", "prompt_lines"):
        with pytest.raises(ValueError, match=message) as caught:
            read(**{option: str(tmp_path / "p")})
        assert str(caught.value).startswith(f"{tmp_path / 'p'}: ")


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("one\ntwo\n", ["one", "two"]),
        ("one\r\ntwo", ["one", "two"]),
        (
            "a\x0bb\x0cc\x1cd\x1de\x1ef\x85g\u2028h\u2029i\n",
            ["a\x0bb\x0cc\x1cd\x1de\x1ef\x85g\u2028h\u2029i"],
        ),
        ("a\rb\r\nc", ["a\rb", "c"]),
        ("\none\n\n\ntwo\n\n", ["", "one", "", "", "two", ""]),
        ("  one \n", ["  one "]),
        ("", []),
    ],
)
def test_lines_end_at_line_ends_only_and_empty_ones_count(text: str, lines: list[str]) -> None:
    assert cut_lines(text) == lines


def test_a_prompt_file_keeps_all_but_its_last_line_end(tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(b"  one\r\n\r\ntwo \n\n")
    assert read(prompt_file=str(tmp_path / "p")) == ["  one\r\n\r\ntwo \n"]
    assert decode_text(b"", "p") == ""


def test_prompts_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="empty: no prompts in it"):
        read(prompt_lines=str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="both read standard input"):
        read(prompt_file="-", prompt_lines="-")


def test_bytes_in_a_prompt_that_are_not_utf8_are_told() -> None:
    told: list[str] = []
    assert read_prompts(Prompts(prompt=("caf\udce9",)), told.append) == ["caf\udce9"]
    assert "not UTF-8" in told[0]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (r"\n", "\n"),
        (r"\n\nUser:\t", "\n\nUser:\t"),
        (r"\\n", r"\n"),
        (r"\\\n", "\\\n"),
        (r"\begin \x", r"\begin \x"),
        ("\n", "\n"),
        ("\\", "\\"),
    ],
)
def test_stop_strings_are_what_was_meant(typed: str, meant: str) -> None:
    assert read_typed(typed) == meant


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 9, "max_new_tokens": 3}, "max_length is 9 and max_new_tokens is 3"),
        ({"stop": ""}, "a stop string is empty"),
        ({"stop": ["x", "\udce9"]}, "a stop string is not UTF-8"),
        *(
            ({name: value}, f"{name} is {value}")
            for name in ("temperature", "top_p", "min_p", "repetition_penalty")
            for value in (math.nan, math.inf, -math.inf, -1.0)
        ),
    ],
)
def test_options_without_meaning_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**settings)


@pytest.mark.parametrize("temperature", [1e-10, 1e-30, 1e-40, 1e-45, 5e-324])
@pytest.mark.parametrize("options", [{}, {"top_k": None}, {"top_k": 0, "top_p": 1.0, "min_p": 1.0}])
def test_tiny_temperatures_write_what_temperature_0_writes(
    temperature: float, options: dict[str, Any]
) -> None:
    generator = Generator(make_model(), make_tokenizer())
    greedy = Settings(temperature=0, max_new_tokens=20, seed=1, **options)
    found = generator.complete(["one", "A"], replace(greedy, temperature=temperature))
    assert found == generator.complete(["one", "A"], greedy)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1e-5},
        {"temperature": 1e300},
        {"temperature": 3e38, "top_k": None, "top_p": None},
        {"top_p": 5e-324},
        {"top_p": 1e-9, "top_k": None},
        {"min_p": 5e-324, "top_k": None},
        {"repetition_penalty": 1e300},
        {"typical_p": 1e-9, "top_k": None},
        {"frequency_penalty": 2.0, "presence_penalty": -2.0},
        {"repetition_penalty": 1e-300},
        {"repetition_penalty": 1e-40, "temperature": 1e-5},
    ],
)
def test_no_option_makes_nan(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 300) * 100
    logits[0, 5], logits[1, 5] = 0.0, -100.0
    extreme = torch.tensor([3e38, -3e38]).repeat(150)[None].expand(4, 300)
    for given in (logits, extreme):
        settings = Settings(**options)
        drafts = [make_draft(settings, [5, 7], seed=row) for row in range(4)]
        choose_tokens(given, drafts)
        scores, _ = find_candidates(adjust_logits(given, drafts), settings)
        assert not bool(torch.softmax(scores, -1).isnan().any())
    if options.get("top_p"):
        drafts = [make_draft(Settings(**options), seed=row) for row in range(4)]
        tokens = choose_tokens(logits, drafts)
        assert tokens == logits.argmax(-1).tolist()


def write_one(prompt: str, settings: Settings, streams: bool) -> tuple[str, list[str]]:
    """What is shown of a text whose model always writes one token, and what is said of it."""
    shown, told = io.StringIO(), list[str]()
    show: Callable[[str], Any] = shown.write
    generator = make_scripted(itertools.repeat(5))
    write_texts(generator, [prompt], settings, show, told.append, streams)
    return shown.getvalue(), told


@pytest.mark.parametrize("streams", [True, False])
def test_a_lone_text_that_the_context_ends_says_so(streams: bool) -> None:
    settings = Settings(temperature=0, max_new_tokens=1000)
    shown, told = write_one("one", settings, streams)
    assert shown.startswith("one")
    assert shown.endswith("\n")
    [line] = told
    assert f"the model's context, {CONFIG.max_position_embeddings:,} tokens, is full" in line
    assert write_one("one", replace(settings, max_new_tokens=3), streams)[1] == []


def test_a_prompt_without_room_is_refused_before_anything_is_shown() -> None:
    shown = io.StringIO()
    show: Callable[[str], Any] = shown.write
    with pytest.raises(ValueError, match="the model's context is 128"):
        write_texts(make_scripted([]), ["!" * 500], Settings(), show, show)
    assert shown.getvalue() == ""


def test_devices_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_device("cpu").type == "cpu"
    for name in ("gpu", "meta", "cuda:x", ""):
        with pytest.raises(ValueError, match="expected cpu, cuda, cuda:N or mps"):
            choose_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device().type == "cpu"
    with pytest.raises(ValueError, match="torch sees no Apple GPU"):
        choose_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert (choose_device().type, choose_device("mps").type) == ("mps", "mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device().type == "cuda"


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="this system has no such device")
def test_a_device_that_never_ends_is_not_read() -> None:
    with pytest.raises(ValueError, match="/dev/zero: is a device, which may never end; expected a"):
        read_text("/dev/zero")

"""`velocity report`: the page of a run as a browser, an XML parser and a hostile log see it."""

import json
import re
import shutil
import subprocess
import sys
import tracemalloc
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from tests.commands import velocity
from tests.runs import read_metrics, run_small
from tests.servers.browser import find_browser, open_browser
from tests.servers.contrast import find_faint
from train.page import pictures, spikes
from train.page.axes import make_value_axis
from train.page.curves import Curve
from train.page.log import MAX_LINE, read_log
from train.page.spikes import measure_rises
from train.page.svg import move_up, show_mark

Shards = Path
HOSTILE = "</pre><script>alert(1)</script><img src=x onerror=alert(1)>\x1b[2J\x00\ud800\ufffe&amp;"


@pytest.fixture(scope="module")
def run(small_shards: Shards, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with validation losses, texts and a checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    settings = {"training__num_training_steps": 24, "training__eval_steps": 8}
    run_small(small_shards, folder, **settings, infrastructure__logging_dir="null")
    return folder / "checkpoints"


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing all PNGs takes seconds: only for the tests of them."""
    if "png" not in request.node.name:
        monkeypatch.setattr("train.page.write.can_draw", lambda: False)


def report(*places: Path, out: Path, options: tuple[object, ...] = ()) -> str:
    """The page of these runs."""
    code, said, errors = velocity("report", *places, "--out", out, *options)
    assert code == 0, errors
    assert said.splitlines()[0].startswith(f"{out}/report.html: the page of ")
    return (out / "report.html").read_text("utf-8")


def parse(page: str) -> ElementTree.Element:
    """The page as XML, which forgives nothing."""
    return ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))


def refuse(*places: Path) -> str:
    """The line with which the command ends that makes no page."""
    code, _, errors = velocity("report", *places)
    assert code == 1
    [line] = errors.splitlines()
    return line


def read_points(page: str, panel: str, number: int = 0) -> list[tuple[float, float]]:
    """The points of a curve as they are drawn."""
    [figure] = [f for f in parse(page).iter("figure") if f.findtext("h3") == panel]
    lines = [*figure.iter("polyline")][number].attrib["points"].split()
    return [(float(x), float(y)) for x, y in (point.split(",") for point in lines)]


def write_log(folder: Path, records: list[dict[str, Any]], name: str = "metrics.jsonl") -> Path:
    """A log of these lines."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / name).write_text(text, "utf-8")
    return folder


class Tags(HTMLParser):
    """The tags and attributes that a browser finds in a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def check_alone(page: str) -> None:
    """The page has no script, and needs nothing from elsewhere."""
    for tag, attributes in Tags(page).found:
        assert tag not in ("script", "link", "img", "iframe", "object", "embed", "base")
        assert not {"src", "href", "xlink:href", "action", "srcset"} & attributes.keys()
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"url\(|@import", page)


# What is on the page


def test_the_page_shows_the_curves_of_the_log(run: Path, tmp_path: Path) -> None:
    page = report(run, out=tmp_path)
    check_alone(page)
    titles = [figure.findtext("h3") for figure in parse(page).iter("figure")]
    assert titles[:3] == ["Loss", "Learning rate", "Norm of the gradients"]
    assert {"Speed", "Waiting for data", "Epochs", "Skipped steps"} <= {*titles}
    curves = [
        Curve(np.array([*metric]), np.array([*metric.values()]))
        for metric in (read_metrics(run, "loss"), read_metrics(run, "validation_loss"))
    ]
    axis = make_value_axis(curves, is_log=False)
    for number, curve in enumerate(curves):
        points = read_points(page, "Loss", number)
        assert [y for _, y in points] == move_up(axis, curve.values.tolist())
        assert points[-1][0] == 352  # The last step is at the right end.
    assert [*read_metrics(run, "validation_loss")] == [8, 16, 24]


def test_each_drawing_is_told_to_who_cannot_see_it(run: Path, tmp_path: Path) -> None:
    page = report(run, out=tmp_path)
    losses = read_metrics(run, "loss")
    for drawing in (each for each in parse(page).iter("svg") if each.get("role") == "img"):
        by_id = {child.get("id"): child.text or "" for child in drawing}
        title, told = (by_id[name] for name in drawing.attrib["aria-labelledby"].split())
        assert title
        if title == "Loss":
            assert told.startswith(f"training: from {losses[1]:.4g} at step 1 to {losses[24]:.4g}")
            assert "validation: from " in told
    ids = re.findall(r'id="([^"]*)"', page)
    assert len(ids) == len(set(ids))


def test_a_png_for_each_drawing(run: Path, tmp_path: Path) -> None:
    page = report(run, out=tmp_path)
    names = {path.name for path in tmp_path.glob("*.png")}
    assert len(names) == len([*parse(page).iter("figure")])
    assert {"loss.png", "learning-rate.png", "speed.png"} <= names
    with Image.open(tmp_path / "loss.png") as image:
        assert image.size == (1200, 750)
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    for color in (pictures.COLORS[0], pictures.COLORS[1]):  # Both curves are drawn.
        wanted = [int(color[place : place + 2], 16) for place in (1, 3, 5)]
        assert (np.abs(pixels.astype(int) - wanted).max(axis=1) < 8).sum() > 500


def test_a_logarithmic_axis_has_round_marks_on_page_and_png(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of both are the same; matplotlib's own would be shown as formulas, unread."""
    write_log(tmp_path / "logs", [{"step": n, "loss": 5, "grad_norm": 9 / n} for n in range(1, 16)])
    drawn: dict[str, list[str]] = {}

    def draw(figure: Any, *_: object, **__: object) -> None:
        figure.draw_without_rendering()
        [axes] = figure.axes
        labels = [*axes.get_yticklabels(), *axes.get_yticklabels(minor=True)]
        drawn[axes.get_title(loc="left")] = [label.get_text() for label in labels]

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", draw)
    page = report(tmp_path, out=tmp_path)
    [figure] = [
        f for f in parse(page).iter("figure") if f.findtext("h3") == "Norm of the gradients"
    ]
    marks = [text.text for text in figure.iter("text") if text.get("text-anchor") == "end"]
    assert marks[:3] == ["1", "2", "5"]
    assert drawn["Norm of the gradients"] == ["1", "2", "5"]


def test_without_matplotlib_there_is_the_page(run: Path, tmp_path: Path) -> None:
    code, said, _ = velocity("report", run, "--out", tmp_path)
    assert code == 0
    assert said.splitlines()[1] == (
        "no PNGs: they need matplotlib; install it with: pip install 'velocitylm[plot]'"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_run_is_found_from_its_folders(run: Path, small_shards: Shards, tmp_path: Path) -> None:
    """By default the page is beside the log."""
    for place in (run, run / "checkpoint-24", run / "logs"):
        code, said, _ = velocity("report", place)
        assert code == 0
        assert said.startswith(f"{run}/logs/report/report.html: the page of {place}")
        assert "24" in (run / "logs" / "report" / "report.html").read_text()
    shutil.rmtree(run / "logs" / "report")
    # The log beside the checkpoints, as the quickstart has it, in folders that were moved.
    run_small(small_shards, tmp_path / "a", training__num_training_steps=2)
    (tmp_path / "a").rename(tmp_path / "b")
    assert "All settings" in report(tmp_path / "b" / "checkpoints", out=tmp_path)


def test_two_runs_over_each_other(run: Path, small_shards: Shards, tmp_path: Path) -> None:
    settings: dict[str, object] = {"infrastructure__seed": 1, "training__learning_rate": 5e-3}
    run_small(small_shards, tmp_path, **settings)
    other = tmp_path / "checkpoints"
    page = report(run, other, out=tmp_path / "out")
    check_alone(page)
    [figure] = [f for f in parse(page).iter("figure") if f.findtext("h3") == "Loss"]
    keys = ["".join(key.itertext()) for key in figure.iter("span")]
    assert keys == [
        f"{each}: {name}" for each in (run, other) for name in ("training", "validation")
    ]
    looks = [line.get("class") for line in figure.iter("polyline")]
    assert looks == ["line color-0", "line color-0 dashed", "line color-1", "line color-1 dashed"]
    rows = [["".join(cell.itertext()) for cell in row] for row in parse(page).iter("tr")]
    assert ["training.learning_rate", "0.01", "0.005"] in rows
    assert ["training.sample_prompts", "null", "null"] in rows
    heads = [head for head in parse(page).iter("th") if head.text in ("run", "loss")]
    assert [head.get("class") for head in heads] == [None, "number"]


# Logs as they are found


def test_a_spike_among_hundreds_of_thousands_of_entries_is_seen(tmp_path: Path) -> None:
    values = 3 + np.sin(np.arange(300_000) / 7) / 10
    values[123_456] = 9.0
    lines = (f'{{"step": {s}, "loss": {v:.6f}}}\n' for s, v in enumerate(values.tolist(), start=1))
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "metrics.jsonl").write_text("".join(lines))
    page = report(tmp_path, out=tmp_path / "out")
    assert len(page) < 100_000
    points = read_points(page, "Loss")
    x, y = min(points, key=lambda point: point[1])
    assert y < 35
    assert x == pytest.approx(46 + 306 * 123_457 / 300_000, abs=0.2)
    assert sorted(point[0] for point in points) == [point[0] for point in points]
    assert "highest 9 at step 123,457" in page


@pytest.mark.parametrize("values", [(1e5, 1e5 + 1), (-3.0001, -3.0), (0.0, 0.0), (7.0, 7.0)])
def test_marks_of_values_that_hardly_differ_can_be_told_apart(values: tuple[float, float]) -> None:
    axis = make_value_axis([Curve(np.array([1, 2]), np.array(values))], is_log=False)
    marks = [show_mark(mark) for mark in axis.marks]
    assert len({*marks}) == len(marks) >= 2
    assert axis.low <= values[0] <= values[1] <= axis.high


def test_a_thinned_curve_keeps_its_outline() -> None:
    values = np.random.default_rng(0).normal(size=10_000)
    curve = Curve(np.arange(1, 10_001), values)
    thin = curve.thin(100)
    assert len(thin.steps) <= 400
    for start in range(0, 10_000, 100):
        part = values[start : start + 100]
        inside = (thin.steps > start) & (thin.steps <= start + 100)
        assert {part.min(), part.max(), part[0], part[-1]} <= {*thin.values[inside].tolist()}
    assert curve.thin(5000) is curve


def test_a_long_log_takes_16_bytes_a_value(tmp_path: Path) -> None:
    names = [f"metric_{n}" for n in range(15)]
    logs = write_log(tmp_path, [{"step": n} | dict.fromkeys(names, n / 7) for n in range(5_000)])
    # Of two for one step the later one counts.
    with open(logs / "metrics.jsonl", "a") as file:
        file.write('{"step": 700, "metric_3": 5}\n')
    tracemalloc.start()
    log = read_log(logs)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5 * 16 * 15 * 5_000
    curve = log.curves["metric_3"]
    assert curve.steps.tolist() == [*range(5_000)]
    assert curve.values[699:702].tolist() == [699 / 7, 5, 701 / 7]


def test_medians_are_the_same_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    curve = Curve(np.arange(500), np.random.default_rng(0).normal(size=500))
    whole = measure_rises(curve)
    assert whole[100] == curve.values[100] - np.median(curve.values[70:100])
    monkeypatch.setattr(spikes, "CHUNK", 7)
    assert measure_rises(curve).tolist() == whole.tolist()


def test_many_prompts_and_long_texts_are_cut(tmp_path: Path) -> None:
    logs = write_log(tmp_path / "logs", [{"step": n, "loss": 5.0} for n in (1, 2)])
    texts = [
        {"step": step, "prompt": f"prompt {n},", "text": f" text {n} of {step}" + "x" * 20_000}
        for step in (1, 2)
        for n in range(25)
    ]
    write_log(logs, texts, "samples.jsonl")
    with open(logs / "samples.jsonl", "ab") as file:
        file.write(b'{"step": 3, "prompt": "", "text": "' + b"x" * MAX_LINE + b'"}\n')
    page = report(tmp_path, out=tmp_path / "out")
    shown = ["".join(each.itertext()) for each in parse(page).iter("pre")]
    assert [text[:20] for text in shown[:2]] == ["prompt 0, text 0 of ", "prompt 0, text 0 of "]
    assert (len(shown), max(map(len, shown)) < 11_000) == (40, True)
    assert shown[0].endswith("xxx ... (20,012 characters)")
    assert "<p>5 more prompts in samples.jsonl.</p>" in page
    assert "passed over 2 damaged lines, " in page


def test_damaged_lines_are_passed_over(tmp_path: Path) -> None:
    logs = write_log(tmp_path / "logs", [{"step": n, "loss": 5 - n / 10} for n in range(1, 9)])
    with open(logs / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 3, "loss": 1e999}\n[1]\n"x"\n{"step": true}\n{"loss": 1}\n\xff\n')
        file.write(b'{"step": 1e3, "loss": 2}\n{"step": -1, "loss": 2}\n' + b"[" * 100_000 + b"\n")
        file.write(b'{"step": 9, "loss": "x", "grad_norm": true}\n{"step": 10, "lo')
    page = report(tmp_path, out=tmp_path / "out")
    assert "training: from 4.9 at step 1 to 4.2 at step 8; highest 4.9" in page
    assert "passed over 9 damaged lines, " in page


def test_a_log_of_one_step_without_validation_and_checkpoint(tmp_path: Path) -> None:
    write_log(tmp_path / "logs", [{"step": 10, "loss": 5.5, "loss_scale": 65536.0}])
    page = report(tmp_path, out=tmp_path / "out")
    check_alone(page)
    assert "validation:" not in page
    assert [*parse(page).iter("circle")]


def test_logs_that_were_set_aside_are_named(tmp_path: Path) -> None:
    logs = write_log(tmp_path / "logs", [{"step": 1, "loss": 5.0}])
    earlier = write_log(logs / "earlier-1", [{"step": 7, "loss": 4.0}])
    assert f"velocity report {tmp_path} {earlier}" in report(tmp_path, out=tmp_path / "out")
    assert f"{earlier}: training" in report(tmp_path, earlier, out=tmp_path / "out")


def test_what_is_no_run_is_told_in_a_line(run: Path, tmp_path: Path) -> None:
    assert refuse(tmp_path) == (
        f"velocity: {tmp_path}: found no metrics.jsonl of this run there or in {tmp_path}/logs; "
        "name its infrastructure.logging_dir"
    )
    assert "no such folder" in refuse(tmp_path / "x")
    write_log(tmp_path / "logs", [])
    assert "no step in it yet; wait for the first one" in refuse(tmp_path)
    # The log of another run is not taken for this one's.
    (tmp_path / "other" / "checkpoints").mkdir(parents=True)
    shutil.copytree(run / "logs", tmp_path / "other" / "logs")
    assert "found no metrics.jsonl of this run" in refuse(tmp_path / "other" / "checkpoints")


def test_other_metrics_are_drawn_under_their_names(tmp_path: Path) -> None:
    write_log(tmp_path / "logs", [{"step": 1, "loss": 5.0, "new_one": 3, "samples": 9}])
    titles = [f.findtext("h3") for f in parse(report(tmp_path, out=tmp_path)).iter("figure")]
    assert titles == ["Loss", "new_one"]


# What texts of others may not do


def test_hostile_texts_are_only_shown_in_pngs_too(tmp_path: Path) -> None:
    name = "a<b>&'\"<script>"
    record: dict[str, Any] = {"step": 1, "loss": 5.0, HOSTILE: 1.0}
    logs = write_log(tmp_path / name / "logs", [record])
    write_log(logs, [{"step": 1, "prompt": HOSTILE, "text": HOSTILE, "seed": 1}], "samples.jsonl")
    bad: dict[str, Any] = {"step": 1, "loss": HOSTILE, HOSTILE: {"x": HOSTILE}}
    bad["samples"] = [{"sample": 1, HOSTILE: 2.5, "documents": [{"url": HOSTILE}, [HOSTILE]]}, 1]
    write_log(logs, [bad], "bad-steps.jsonl")
    page = report(tmp_path / name, out=tmp_path)
    check_alone(page)
    assert page.count("&lt;script&gt;alert(1)") >= 7
    texts = ["".join(each.itertext()) for each in parse(page).iter("pre")]
    assert texts == [2 * HOSTILE.replace("\x1b", "\\x1b").replace("\x00", "\\x00").replace(
        "\ud800", "\\ud800").replace("\ufffe", "\ufffd")]  # fmt: skip
    assert """default-src 'none'; style-src 'unsafe-inline'""" in page


# Documents


@pytest.fixture
def spiked(run: Path, tmp_path: Path) -> Path:
    """The run, with a loss at step 17 that stands out."""
    shutil.copytree(run, tmp_path / "checkpoints")
    path = tmp_path / "checkpoints" / "logs" / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        if record["step"] == 17 and "loss" in record:
            record["loss"] = record["largest_loss"] = 30.0
    write_log(path.parent, records)
    return tmp_path / "checkpoints"


def list_spikes(page: str) -> list[str]:
    """The headings of the steps that stand out."""
    return re.findall(r"<h3>(step \d+: loss .*? above the median before)</h3>", page)


def test_the_documents_behind_a_spike(spiked: Path, small_shards: Shards, tmp_path: Path) -> None:
    page = report(spiked, out=tmp_path / "out")
    assert list_spikes(page)[0].startswith("step 17: loss 30, ")
    _, traced, _ = velocity("shards", "trace", small_shards, "--run", spiked, "--step", 17)
    expected = Counter[str]()
    for line in traced.splitlines():
        if line.startswith("  "):
            expected[line.split()[6]] += int(line.split()[0])
    tables = [t for t in parse(page).iter("table") if next(t.iter("th")).text == "tokens"]
    rows = [["".join(cell.itertext()) for cell in row] for row in tables[0].findall("tr")[1:]]
    assert [int(row[0]) for row in rows] == [count for _, count in expected.most_common(8)]
    assert {(row[2], int(row[0])) for row in rows} <= expected.items()
    assert all(len(row[4]) > 20 for row in rows)


@pytest.mark.parametrize("fault", ["shards", "checkpoint"])
def test_documents_that_cannot_be_traced(spiked: Path, tmp_path: Path, fault: str) -> None:
    options: tuple[object, ...] = ()
    if fault == "shards":
        options = ("--shards", tmp_path / "gone")
    else:
        shutil.rmtree(spiked / "checkpoint-24")
    page = report(spiked, out=tmp_path / "out", options=options)
    assert list_spikes(page)
    reasons = {"shards": "gone", "checkpoint": "the run has no checkpoint"}
    assert re.search(f"Not traced: [^<]*{reasons[fault]}", page)


def test_the_log_has_the_step_of_the_largest_loss(small_shards: Shards, tmp_path: Path) -> None:
    """Between two entries the mean would hide it."""
    run_small(small_shards, tmp_path / "each")
    run_small(small_shards, tmp_path / "some", training__logging_steps=4)
    losses = read_metrics(tmp_path / "each")
    largest = read_metrics(tmp_path / "some", "largest_loss")
    steps = read_metrics(tmp_path / "some", "largest_loss_step")
    assert sorted(largest) == [4, 8]
    for last in (4, 8):
        part = {step: losses[step] for step in range(last - 3, last + 1)}
        assert largest[last] == max(part.values())
        assert part[int(steps[last])] == largest[last]


def test_bad_steps_are_shown_with_the_documents_of_their_samples(tmp_path: Path) -> None:
    """In the form of train/bad_step.py."""
    logs = write_log(tmp_path / "logs", [{"step": n, "loss": 5.0} for n in (1, 2)])
    documents = [{"url": "https://a.example/1", "doc_hash": "ab12", "source_row": 7}]
    samples = [{"sample": 33, "rank": 1, "loss": 11.5, "start": 64, "documents": documents}]
    bad = {"step": 2, "loss": None, "reason": "a spike", "action": "skip", "samples": samples}
    write_log(logs, [bad], "bad-steps.jsonl")
    page = report(tmp_path, out=tmp_path / "out")
    rows = [["".join(cell.itertext()) for cell in row] for row in parse(page).iter("tr")]
    assert ["", "a spike", "skip"] in rows
    assert ["33", "1", "11.5", "64", "https://a.example/1 ab12 7"] in rows


# As a browser shows it


@pytest.mark.skipif(not find_browser(), reason="no Chromium here")
def test_a_browser_shows_it_on_a_phone_and_in_the_dark(run: Path, tmp_path: Path) -> None:
    report(run, out=tmp_path)
    address = (tmp_path / "report.html").as_uri()
    with open_browser(tmp_path / "profile") as tab:
        tab.open(address)
        for details in ("false", "true"):
            tab.run(f"document.querySelectorAll('details').forEach(e => e.open = {details})")
            for width, scheme, lightness in ((360, "light", (250, 256)), (1280, "dark", (0, 60))):
                tab.show_as(width, 800, scheme)
                tab.run("new Promise(requestAnimationFrame)")
                assert tab.run("document.documentElement.scrollWidth") <= width
                assert find_faint(tab) == []
                tab.draw(tmp_path / "seen.png")
                with Image.open(tmp_path / "seen.png") as image:
                    assert image.convert("L").getpixel((3, 3)) in range(*lightness)
                    assert len(image.convert("RGB").getcolors(1 << 20) or []) > 20
        assert {*tab.requested} == {address}
        # A script that somebody got into the page all the same.
        tab.run(
            "document.body.append(Object.assign(document.createElement('script'),"
            " {textContent: 'hacked = 1'}))"
        )
        assert "hacked" not in tab.run("Object.keys(window)")
        [error] = tab.errors
        assert "Content Security Policy" in error


def test_it_needs_no_torch(run: Path, tmp_path: Path) -> None:
    code = (
        "import sys, cli\n"
        f"sys.argv = ['velocity', 'report', {str(run)!r}, '--out', {str(tmp_path)!r}]\n"
        "try:\n    cli.main()\nfinally:\n    assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.html").exists()

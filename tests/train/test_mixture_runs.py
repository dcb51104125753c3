"""Runs on several sets with weights: what is read, also after a kill and a change of the sets."""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import train.loop
from shards.documents import Sidecars
from shards.edit.remove import Wanted
from shards.mixture.mixture import Mixture, Stage
from shards.order import SampleOrder
from shards.reader import TokenStream, open_shards
from tests.commands import velocity
from tests.runs import make_overrides, read_metrics
from tests.servers.forked import Forked, run_ranks
from tests.texts import make_texts
from tests.tiny import TOKENIZER_JSON
from tests.tokenized import write_set
from tests.train.test_bad_steps import bent
from tests.train.test_rollback import BAD, spoil
from tests.train.test_rollback import SETTINGS as ROLLBACK
from tests.train.test_saving import assert_same_state
from train.checkpoints.position import read_position
from train.evaluate import evaluate
from train.inspect.folders import inspect_folder
from train.loop import Outcome
from train.page.write import write_page
from train.publish.card import make_card
from train.publish.facts import gather
from train.run import Run
from train.settings import load_config
from train.take_step import take_step
from train.tracing.runs import trace_run, trace_sets
from train.tracing.steps import Tracer
from train.tracing.takedown import Takedown, take_down

LENGTH, PER_STEP, SEED = 16, 4, 42
Windows = dict[int, npt.NDArray[np.int64]]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three sets: of books a run of a few steps reads more than an epoch."""
    folder = tmp_path_factory.mktemp("sets")
    for number, (name, count) in enumerate({"web": 300, "code": 200, "books": 6}.items()):
        mean = 4 if name == "books" else 20
        texts = make_texts(count, seed=number, mean_words=mean)
        write_set(folder / name, TOKENIZER_JSON, texts, "<|endoftext|>")
    return folder


def make_words(
    sets: Path, folder: Path, mixture: Mapping[str, float], **changes: object
) -> list[str]:
    """The settings of a run on these sets, by their folders' names."""
    weights = ", ".join(f"{sets / name}: {weight}" for name, weight in mixture.items())
    words = make_overrides(Path(), folder, **changes)
    return [
        *(word for word in words if not word.startswith("data.shards=")),
        f"data.mixture={{{weights}}}",
    ]


def run_mixture(
    sets: Path, folder: Path, mixture: Mapping[str, float], **changes: object
) -> Outcome:
    return train.loop.train(load_config(None, make_words(sets, folder, mixture, **changes)))


@contextmanager
def recording(monkeypatch: pytest.MonkeyPatch) -> Iterator[Windows]:
    """The windows of each step, as the model gets them."""
    seen: Windows = {}

    def record(run: Run) -> object:
        step = take_step(run)
        seen[run.step] = np.concatenate([part.numpy() for part in run.batches.windows])
        return step

    with monkeypatch.context() as patch:
        patch.setattr(train.loop, "take_step", record)
        yield seen


def read_alone(folder: Path, count: int) -> npt.NDArray[np.int64]:
    """The first windows that a run on one set alone reads."""
    stream = open_shards(folder).stream("train")
    order = SampleOrder(stream.num_tokens, LENGTH, SEED)
    return stream.windows(order.starts(np.arange(count)), LENGTH + 1).astype(np.int64)


def assert_read(seen: Windows, sets: Path, expected: Mapping[str, int]) -> None:
    """All windows are the first ones of each set, in its order: none twice, none left out."""
    windows = np.concatenate([seen[step] for step in sorted(seen)])
    places = dict.fromkeys(expected, 0)
    alone = {name: read_alone(sets / name, count + 1) for name, count in expected.items()}
    for window in windows:
        [name] = [n for n, place in places.items() if (alone[n][place] == window).all()]
        places[name] += 1
    assert places == expected


def test_a_run_reads_its_sets_by_their_weights(
    sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mixture = {"web": 0.5, "code": 0.25, "books": 0.25}
    with recording(monkeypatch) as seen:
        outcome = run_mixture(sets, tmp_path, mixture, data__verify="open")
    assert_read(seen, sets, {"web": 16, "code": 8, "books": 8})
    said = capsys.readouterr().err
    tokens = {name: open_shards(sets / name).manifest.num_tokens("train") for name in mixture}
    books = 8 * LENGTH / tokens["books"]
    assert books > 1
    assert f", books: {books:.4g} epochs\n" in said
    per_epoch = (tokens["books"] - LENGTH) // LENGTH
    assert read_metrics(tmp_path, "epoch/books")[8] == pytest.approx(8 / per_epoch, abs=1e-6)
    assert read_metrics(tmp_path, "epoch") == {}
    # The validation loss is the mean by shares; books has none.
    web, code = (read_metrics(tmp_path, f"validation_loss/{name}")[8] for name in ("web", "code"))
    assert outcome.validation_loss == pytest.approx((2 * web + code) / 3, abs=1e-9)
    assert web != code
    assert read_metrics(tmp_path, "validation_loss") == {8: outcome.validation_loss}
    assert f"validation loss {outcome.validation_loss:.4f} (web {web:.4f}, code {code:.4f})" in said


def test_a_set_alone_is_as_it_was_however_it_is_named(sets: Path, tmp_path: Path) -> None:
    run_mixture(sets, tmp_path / "mixture", {"web": 3})
    words = make_overrides(sets / "web", tmp_path / "alone")
    train.loop.train(load_config(None, words))
    ends = [tmp_path / name / "checkpoints" / "checkpoint-8" for name in ("mixture", "alone")]
    assert_same_state(*ends)
    state = json.loads((ends[0] / "training_state.json").read_text())
    assert [*state][:4] == ["step", "samples_consumed", "history", "dataset_id"]
    assert "mixture" not in state


def test_killed_it_goes_on_bit_for_bit(sets: Path, tmp_path: Path) -> None:
    mixture = {"web": 0.6, "code": 0.4}
    changes = {"training__save_steps": 3, "training__num_training_steps": 7}
    run_mixture(sets, tmp_path / "straight", mixture, **changes)
    words = make_words(sets, tmp_path / "killed", mixture, **changes)
    checkpoints = tmp_path / "killed" / "checkpoints"
    Forked(["train", *words]).kill_after(checkpoints / "checkpoint-3" / "checksums.json")
    for path in checkpoints.glob("checkpoint-7"):
        shutil.rmtree(path)  # It was faster than the signal.
    train.loop.train(load_config(None, words))
    straight = tmp_path / "straight" / "checkpoints"
    assert_same_state(straight / "checkpoint-7", checkpoints / "checkpoint-7")
    for name in ("loss", "validation_loss", "validation_loss/code"):
        assert read_metrics(tmp_path / "straight", name) == read_metrics(tmp_path / "killed", name)


def test_ranks_read_what_one_reads(sets: Path, tmp_path: Path) -> None:
    mixture = {"web": 0.6, "code": 0.4}
    changes = {"training__global_batch_tokens": 6 * LENGTH, "training__num_training_steps": 4}
    changes |= {"training__gradient_accumulation_steps": "auto"}
    run_mixture(sets, tmp_path / "one", mixture, **changes)
    run_ranks(2, make_words(sets, tmp_path / "two", mixture, **changes))
    for metric in ("loss", "validation_loss/web", "validation_loss/code"):
        one, two = (read_metrics(tmp_path / name, metric) for name in ("one", "two"))
        assert one == pytest.approx(two, abs=1e-4)
    for metric in ("epoch/web", "epoch/code", "samples"):
        one, two = (read_metrics(tmp_path / name, metric) for name in ("one", "two"))
        assert one
        assert one == two


def test_a_run_that_goes_back_passes_over_samples_of_all_sets(
    sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 7 is bad: 16 to 27 are passed over. Another set comes after the last, 51."""
    changes = {**ROLLBACK, "training__schedule": "constant"}
    with recording(monkeypatch) as seen:
        with bent(lambda run, total: spoil(BAD, run, total)):
            run_mixture(sets, tmp_path, {"web": 3, "code": 1}, **changes)
        changes["training__num_training_steps"] = 12
        run_mixture(sets, tmp_path, {"web": 2, "code": 1, "books": 1}, **changes)
    read = [*range(16), *range(28, 60)]
    mixture = Mixture((Stage(0, (3, 1)), Stage(52, (2, 1, 1))))
    numbers, own = mixture.locate(np.array(read))
    alone = [read_alone(sets / name, 60) for name in ("web", "code", "books")]
    expected = np.stack([alone[n][s] for n, s in zip(numbers, own, strict=True)])
    assert sorted(set(numbers.tolist())) == [0, 1, 2]
    assert (np.concatenate([seen[step] for step in sorted(seen)]) == expected).all()


def test_sets_that_come_and_go_repeat_and_skip_nothing(
    sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From one set alone to three, to two, to one; a document leads to its steps and back."""
    stages: list[tuple[dict[str, float], int]] = [
        ({"web": 1}, 3),
        ({"code": 0.25, "web": 0.75}, 6),
        ({"web": 1, "code": 1, "books": 2}, 9),
        ({"books": 1, "web": 1}, 12),
        ({"code": 1, "web": 2}, 16),
    ]
    with recording(monkeypatch) as seen:
        for mixture, steps in stages:
            changes = {"training__num_training_steps": steps, "training__save_steps": 2}
            run_mixture(sets, tmp_path, mixture, training__schedule="constant", **changes)
    assert_read(seen, sets, {"web": 12 + 9 + 3 + 6 + 11, "code": 3 + 3 + 5, "books": 6 + 6})
    said = capsys.readouterr().err
    assert "data.mixture: after 12 samples: 25% code (new), 75% web (after 12)\n" in said
    assert "data.mixture: after 36 samples: 50% books (after 6), 50% web (after 24), no m" in said
    assert "data.mixture: after 48 samples: 33.33% code (after 6), 66.67% web (after 30)" in said
    position = read_position(tmp_path / "checkpoints" / "checkpoint-16")
    shares = [(1,), (3, 1), (1, 1, 2), (1, 0, 1), (2, 1, 0)]
    firsts = [0, 12, 24, 36, 48]
    assert position.mixture == Mixture(tuple(map(Stage, firsts, shares)))
    check_tracing(sets, tmp_path, seen)


def check_tracing(sets: Path, folder: Path, seen: Windows) -> None:
    """Both directions agree with each other, and with what was read."""
    tracers = [trace_run(open_shards(sets / name), folder / "checkpoints") for name in names(sets)]
    for step, windows in seen.items():
        told = {}
        for tracer in tracers:
            stream = tracer.shards.stream("train")
            for sample, [(start, _)], documents in tracer.documents_of_step(step):
                told[sample] = stream.read(start, LENGTH + 1).tolist()
                assert all(step in tracer.steps_of_document(document) for document in documents)
        assert [told[sample] for sample in sorted(told)] == windows.tolist()
    for tracer in tracers:
        backward = list_backward(tracer)
        assert len(backward) > 3
        forward = {
            (step, document.start)
            for step in seen
            for _, _, documents in tracer.documents_of_step(step)
            for document in documents
        }
        assert forward == backward


def list_backward(tracer: Tracer) -> set[tuple[int, int]]:
    documents = Sidecars(tracer.shards, "train").between(0, tracer.order.num_tokens)
    return {
        (s, document.start) for document in documents for s in tracer.steps_of_document(document)
    }


def names(sets: Path) -> list[str]:
    return sorted(path.name for path in sets.iterdir())


def test_each_entry_may_choose_its_documents(sets: Path, tmp_path: Path) -> None:
    """One set named twice, as two halves: each goes on where it was after a change of weights."""
    odd = {"shards": f"{sets}/web", "weight": 3, "where": "source_row < 150"}
    rest = {"shards": f"{sets}/web", "weight": 1, "where": "source_row >= 150"}
    words = [w for w in make_words(sets, tmp_path, {}) if "data.mixture" not in w]
    listed = [*words, f"data.mixture={json.dumps([odd, rest])}"]
    train.loop.train(load_config(None, [*listed, "training.num_training_steps=4"]))
    listed = [*words, f"data.mixture={json.dumps([rest | {'weight': 2}, odd])}"]
    train.loop.train(load_config(None, [*listed, "training.num_training_steps=6"]))
    assert {"epoch/web", "epoch/web-2"} <= set(json.loads(read_last_line(tmp_path)))
    tracer = trace_run(open_shards(sets / "web"), tmp_path / "checkpoints")
    counts = {True: 0, False: 0}
    for step in range(1, 7):
        for _, _, documents in tracer.documents_of_step(step):
            [is_odd] = {document.source_row < 150 for document in documents}
            counts[is_odd] += 1
            assert all(step in tracer.steps_of_document(document) for document in documents)
    assert counts == {True: 12 + 5, False: 4 + 3}
    facts = gather(tmp_path / "checkpoints")
    assert make_card(facts, "me/model", "mit", None, False).count("The run took ") == 2
    listed = [*words, f"data.mixture={json.dumps([rest, odd | {'where': 'num_tokens > 9'}])}"]
    with pytest.raises(
        ValueError, match=r"was trained with data.where=source_row < 150, now it is"
    ):
        train.loop.train(load_config(None, [*listed, "training.num_training_steps=8"]))
    with pytest.raises(ValueError, match=r"data.where is for the one set of data.shards; with da"):
        load_config(None, [*listed, "data.where=num_tokens > 9"])


def read_last_line(folder: Path) -> str:
    """The last line of a run's log."""
    return (folder / "logs" / "metrics.jsonl").read_text().splitlines()[-2]


def test_a_set_named_twice_is_validated_once(
    sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Conditions leave its validation split whole; its loss counts with the weights of both."""
    evaluated = []

    def count(model: object, stream: TokenStream, *args: object, **options: object) -> object:
        evaluated.append(stream.folder.name)
        return evaluate(model, stream, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(train.loop, "evaluate", count)
    long, short = "num_tokens >= 20", "num_tokens < 20"
    mixture = [
        {"shards": f"{sets}/web", "weight": 1, "where": long},
        {"shards": f"{sets}/code", "weight": 1},
        {"shards": f"{sets}/web", "weight": 2, "where": short},
    ]
    words = make_words(sets, tmp_path, {"web": 1}, training__num_training_steps=2)
    words += [f"data.mixture={json.dumps(mixture)}"]
    outcome = train.loop.train(load_config(None, words))
    assert evaluated == ["web", "code"]
    web, code = (read_metrics(tmp_path, f"validation_loss/{name}")[2] for name in ("web", "code"))
    assert web != code
    assert read_metrics(tmp_path, "validation_loss/web-2") == {}
    assert outcome.validation_loss == pytest.approx((3 * web + code) / 4, abs=1e-9)
    assert (read_metrics(tmp_path, "epoch/web"), read_metrics(tmp_path, "epoch/web-2")) != ({}, {})
    said = capsys.readouterr().err
    assert "windows of 16: 8 of web, 8 of code\n" in said
    assert f"of web, where {long}\n" in said
    assert f"of web-2, where {short}\n" in said
    assert f"(web {web:.4f}, code {code:.4f})\n" in said
    # What is known of it later says which documents each had.
    checkpoint = tmp_path / "checkpoints" / "checkpoint-2"
    web_id = open_shards(sets / "web").manifest.dataset_id
    told = inspect_folder(checkpoint).facts["set"]
    assert f"2 samples of dataset_id {web_id} where {long}, " in told
    assert told.endswith(f"4 samples of dataset_id {web_id} where {short}")
    card = make_card(gather(checkpoint), "me/model", "mit", None, False).replace("\\", "")
    assert f"Of its documents it read those where {short}." in card
    # With no other set there is one loss, and no names for it.
    alone = [*words, f"data.mixture={json.dumps([mixture[0], mixture[2]])}"]
    alone += [f"infrastructure.{name}={tmp_path / name}" for name in ("output_dir", "logging_dir")]
    evaluated.clear()
    train.loop.train(load_config(None, alone))
    assert evaluated == ["web"]
    record = json.loads((tmp_path / "logging_dir" / "metrics.jsonl").read_text().splitlines()[-1])
    assert [name for name in record if name.startswith("validation_loss")] == ["validation_loss"]


def test_conditions_that_choose_the_same_are_refused(sets: Path, tmp_path: Path) -> None:
    """A run that goes on could not tell them apart."""
    for wheres in (("num_tokens > 0", "source_row >= 0"), (None, "num_tokens > 0")):
        entries = [{"shards": f"{sets}/web", "weight": 1, "where": where} for where in wheres]
        words = make_words(sets, tmp_path, {"web": 1})
        with pytest.raises(
            ValueError,
            match=f"/web: {wheres[0] or 'all documents'} and {wheres[1]} choose the same documents",
        ):
            train.loop.train(load_config(None, [*words, f"data.mixture={json.dumps(entries)}"]))


@pytest.fixture(scope="module")
def finished(sets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on web and code that has done 4 steps."""
    folder = tmp_path_factory.mktemp("finished")
    run_mixture(sets, folder, {"web": 3, "code": 1}, training__num_training_steps=4)
    return folder


def test_what_is_known_of_a_run_names_its_sets(sets: Path, finished: Path) -> None:
    checkpoint = finished / "checkpoints" / "checkpoint-4"
    web, code = (open_shards(sets / name).manifest.dataset_id for name in ("web", "code"))
    facts = inspect_folder(checkpoint).facts
    assert facts["set"] == f"12 samples of dataset_id {web}, 4 samples of dataset_id {code}"
    card = make_card(gather(checkpoint), "me/model", "mit", None, False)
    assert "It is a mixture of 2 sets.\n" in card
    assert f"dataset_id {code}: the same" in card
    assert "The run took 12 of its samples from it." in card
    assert str(sets) not in card.replace("\\", "")
    longer = finished.parent / "longer"
    shutil.copytree(finished, longer)
    state = longer / "checkpoints" / "checkpoint-4" / "run_config.json"
    state.write_text(state.read_text().replace('_steps": 4', '_steps": 9'))
    [command] = [use for use in inspect_folder(longer / "checkpoints").use if "torchrun" in use]
    assert f"""'data.mixture={{"{sets}/web": 3.0, "{sets}/code": 1.0}}'""" in command
    lines = [*write_page([finished / "checkpoints"], finished / "page", None)]
    assert lines
    page = (finished / "page" / "report.html").read_text()
    assert "Validation loss by set" in page
    assert "no such" not in page


def test_a_step_leads_to_the_documents_of_all_sets(sets: Path, finished: Path) -> None:
    run = ["--run", str(finished / "checkpoints")]
    _, shown, _ = velocity("shards", "trace", "--step", "2", *run)
    samples = [line for line in shown.splitlines() if line.startswith("sample ")]
    folders = [line.rpartition(" of train of ")[2] for line in samples]
    assert sorted(folders) == [str(sets / "code"), *[str(sets / "web")] * 3]
    assert [line.split()[1] for line in samples] == ["4:", "5:", "6:", "7:"]
    _, shown, _ = velocity("shards", "trace", sets / "code", "--step", "2", *run)
    assert shown.count(": of another set; name its folder\n") == 3
    words = [
        word for word in make_words(sets, finished, {"web": 3, "code": 1}) if "mixture" in word
    ]
    _, planned, _ = velocity("shards", "trace", sets / "code", *words, "--step", "2")
    assert planned != shown  # Another length of windows, but as many of the set.
    assert planned.count("of another set") > 0
    document = next(trace_run(open_shards(sets / "code"), Path(run[1])).documents_of_step(2))[2][0]
    _, shown, _ = velocity("shards", "trace", "--url", document.url, *run)
    assert re.search(r": steps (\d+, )*2(, \d+)* of 1 to 4\n", shown)
    code, _, refused = velocity("shards", "trace", "--url", "https://example.org/none", *run)
    assert code == 1
    assert "no document with the URL https://example.org/none\n" in refused
    code, _, refused = velocity("shards", "trace", sets / "books", "--step", "2", *run)
    assert code == 1
    assert "was trained on dataset_id" in refused


def test_a_takedown_tells_the_steps_of_a_mixture(
    sets: Path, finished: Path, tmp_path: Path
) -> None:
    """And the run goes on with the version that has the document no more."""
    own, folder = tmp_path / "sets", tmp_path / "run"
    shutil.copytree(sets, own)
    shutil.copytree(finished, folder)
    tracer = trace_run(open_shards(own / "code"), folder / "checkpoints")
    [_, _, documents], *_ = tracer.documents_of_step(3)
    wanted = Wanted(frozenset([documents[0].url or ""]))
    lines = [*take_down(Takedown(own / "code", wanted, True, folder / "checkpoints"), print)]
    assert any(re.search(r": steps (\d+, )*3(, \d+)*$", line) for line in lines)
    mixture = {"web": 3, "code": 1}
    outcome = run_mixture(own, folder, mixture, training__num_training_steps=6)
    assert outcome.step == 6
    assert len(read_position(folder / "checkpoints" / "checkpoint-6").dataset_ids) == 2
    assert [[*t.sources] for t in trace_sets(None, folder / "checkpoints")] == [[0], [1]]


def test_sets_that_a_run_cannot_go_on_with_are_refused(
    sets: Path, finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    with pytest.raises(ValueError, match=r"checkpoint-4: was trained with dataset_id=\w+, now it"):
        run_mixture(sets, folder, {"books": 1}, training__num_training_steps=6)
    own = tmp_path / "sets"
    own.mkdir()
    shutil.copytree(sets / "web", own / "web")
    shutil.copytree(sets / "code", own / "code")
    run_mixture(own, folder, {"web": 3, "code": 1}, training__num_training_steps=6)
    shutil.rmtree(own / "code")
    shutil.copytree(sets / "books", own / "code")
    with pytest.raises(ValueError, match=r"/code: holds another set \(dataset_id \w+\) than when "):
        run_mixture(own, folder, {"web": 3, "code": 1}, training__num_training_steps=8)

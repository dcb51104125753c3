"""Evaluation in a run: figures are those of `velocity eval`, and training is as without it."""

import io
import json
import math
import random
import re
import shutil
import signal
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model.generate import load_generator
from model.transformer import Transformer
from shards.reader import open_shards
from tests.commands import velocity
from tests.runs import make_config, make_overrides, read_metrics, run_small
from tests.servers.forked import run_ranks
from tests.texts import WORDS, make_texts
from tests.tiny import TOKENIZER_JSON, make_model, staying_compiled
from tests.tokenized import write_set
from train.evaluation.dealing import make_lone_dealer
from train.evaluation.during import Metrics, measure_each, open_evaluations
from train.loop import say_nothing, train
from train.page.log import read_log
from train.page.panels import fill_panels
from train.publish.card import make_card
from train.publish.facts import gather
from train.ranks.stop import StopFlag
from train.reports.evaluations import KINDS
from train.reports.log_folder import METRICS
from train.reports.report import Report
from train.settings import config_from_dict, config_to_dict, load_config
from train.start.ids import fit_model

SETS = ("loss", "loss_stderr", "bits_per_byte", "bits_per_byte_stderr")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set to train on, another one to evaluate, one without validation split, and two tasks."""
    folder = tmp_path_factory.mktemp("during")
    for name, count, seed in (("train", 200, 1), ("wiki", 120, 2), ("few", 7, 3)):
        texts = make_texts(count, seed=seed, mean_words=20)
        write_set(folder / name, TOKENIZER_JSON, texts, "<|endoftext|>")
    generator = random.Random(4)

    def words(most: int) -> str:
        return " ".join(generator.choices(WORDS, k=generator.randint(1, most))).strip() or "fox"

    questions = [
        {"question": words(4), "choices": [words(3) for _ in range(3)], "answer": n % 3}
        for n in range(23)
    ]
    questions[5]["question"] = ""
    completions = [{"prompt": words(4), "expected": words(2)} for _ in range(11)]
    for name, items in (("questions", questions), ("completions", completions)):
        lines = [json.dumps(item) + "\n" for item in items]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def make_settings(folder: Path, **changes: object) -> dict[str, object]:
    """A run of 8 steps with a checkpoint and evaluations every 4 of them."""
    sets = f"{folder}/wiki,few={folder}/few"
    tasks = f"{folder}/questions.jsonl,{folder}/completions.jsonl"
    settings: dict[str, object] = {"training__eval_sets": sets, "training__eval_tasks": tasks}
    settings |= {"training__eval_steps": 4, "training__save_steps": 4}
    # Large weights, so that choices differ.
    settings |= {"model__initializer_range": 0.3, "training__eval_windows": 13}
    return settings | changes


def read_evaluations(folder: Path) -> dict[tuple[int, str], float]:
    """The metrics of evaluations in a run's log, by step and name; none may be there twice."""
    found: dict[tuple[int, str], float] = {}
    for line in (folder / "logs" / METRICS).read_text().splitlines():
        record = json.loads(line)
        for name, value in record.items():
            if name.startswith(("sets/", "tasks/")):
                assert (record["step"], name) not in found
                found[record["step"], name] = value
    return found


def evaluate(folder: Path, run: Path, step: int) -> dict[str, float]:
    """What `velocity eval` says of a checkpoint, by the names of a run's log."""
    found: dict[str, float] = {}
    ckpt = run / "checkpoints" / f"checkpoint-{step}"

    def ask(*options: object) -> dict[str, Any]:
        code, output, errors = velocity("eval", "--ckpt", ckpt, *options, "--json")
        assert code == 0, errors
        report: dict[str, Any] = json.loads(output)
        return report

    for name, split in (("wiki", "validation"), ("few", "train")):
        report = ask("--shards", folder / name, "--split", split, "--windows", 13)
        found |= {f"sets/{name}/{key}": report[key] for key in SETS}
    for name in ("questions", "completions"):
        [report] = ask("--task", folder / f"{name}.jsonl")["tasks"]
        others = ("task", "kind", "items", "cut_items")
        found |= {f"tasks/{name}/{key}": v for key, v in report.items() if key not in others}
    return found


def read_weights(run: Path) -> bytes:
    return (run / "checkpoints" / "checkpoint-8" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run, and what it said."""
    out = tmp_path_factory.mktemp("run")
    with redirect_stderr(io.StringIO()) as said:
        run_small(folder / "train", out, **make_settings(folder))
    return out, said.getvalue()


def check_figures(folder: Path, run: Path, step: int) -> dict[str, float]:
    """Compare a step's figures with those of `velocity eval`, which it returns."""
    own = {name: value for (at, name), value in read_evaluations(run).items() if at == step}
    expected = evaluate(folder, run, step)
    assert own.keys() == expected.keys()
    assert own == pytest.approx(expected, abs=1e-6, rel=1e-6)
    return expected


def test_figures_are_those_of_velocity_eval(folder: Path, run: tuple[Path, str]) -> None:
    out, said = run
    found = read_evaluations(out)
    assert {step for step, _ in found} == {4, 8}
    for step in (4, 8):
        expected = check_figures(folder, out, step)
        assert f"step {step}: sets/wiki: loss {expected['sets/wiki/loss']:.4f} (+- " in said
        assert f"step {step}: tasks/questions: acc {expected['tasks/questions/acc']:.2%} " in said
    # Sets and steps differ.
    assert len({round(value, 6) for (_, name), value in found.items() if "/loss" in name}) == 8
    sets = r"every 4 steps, few \(train, \d+ windows\), wiki \(validation, 13 windows\)\n"
    assert re.search(f"\nevaluation   {sets}", said)
    assert "evaluation   every 4 steps, completions (11 items), questions (23 items)" in said


def test_training_is_as_without(folder: Path, run: tuple[Path, str], tmp_path: Path) -> None:
    settings = make_settings(folder)
    del settings["training__eval_sets"], settings["training__eval_tasks"]
    run_small(folder / "train", tmp_path, **settings)
    for name in ("loss", "validation_loss", "grad_norm"):
        assert read_metrics(run[0], name) == read_metrics(tmp_path, name)
    assert read_weights(run[0]) == read_weights(tmp_path)
    assert not read_evaluations(tmp_path)


def test_documents_are_kept_apart_in_sets(folder: Path, tmp_path: Path) -> None:
    settings = make_settings(folder, training__num_training_steps=4, data__attention="document")
    run_small(folder / "train", tmp_path, **settings)
    check_figures(folder, tmp_path, 4)


def test_the_runs_own_set_gives_the_validation_loss(folder: Path, tmp_path: Path) -> None:
    """In half precision, too: products are those of the training loss."""
    sets = f"own={folder}/train"
    settings = make_settings(folder, training__eval_sets=sets, training__precision="bf16")
    run_small(folder / "train", tmp_path, **settings)
    losses = read_metrics(tmp_path, "validation_loss")
    assert read_metrics(tmp_path, "sets/own/loss") == pytest.approx(losses, abs=1e-6)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_ranks_share_the_work_and_find_the_same(
    folder: Path, tmp_path: Path, strategy: str
) -> None:
    """Two ranks, with batches that do not come out even: to the last bit what one rank finds."""
    settings = make_settings(folder, training__num_training_steps=4)
    words = make_overrides(folder / "train", tmp_path, **settings, distributed__strategy=strategy)
    run_ranks(2, words)
    check_figures(folder, tmp_path, 4)
    config = make_config(folder / "train", tmp_path, **settings)
    shards = open_shards(folder / "train")
    config = fit_model(config, shards.folder, shards.manifest)
    model = load_generator(tmp_path / "checkpoints").model
    evaluations = open_evaluations(config, shards, say_nothing)
    due = evaluations.list_due(4)
    assert [each.key for each in due] == [
        *("sets/few", "sets/wiki", "tasks/completions", "tasks/questions")
    ]
    found = {
        (4, f"{key}/{name}"): value
        for key, metrics in measure_each(due, model, make_lone_dealer(torch.device("cpu")), 2 * 16)
        for name, value in (metrics or {}).items()
    }
    assert read_evaluations(tmp_path) == found


def test_a_run_that_goes_on_has_each_point_once(
    folder: Path, run: tuple[Path, str], tmp_path: Path
) -> None:
    """From step 4, killed before its evaluations, amid them, or long after."""
    whole = read_evaluations(run[0])
    for left in range(3):
        out = tmp_path / str(left)
        shutil.copytree(run[0], out)
        shutil.rmtree(out / "checkpoints" / "checkpoint-8")
        log = out / "logs" / METRICS
        lines = log.read_text().splitlines(keepends=True)
        [first, *others] = [
            n for n, line in enumerate(lines) if "sets/" in line or "tasks/" in line
        ]
        stop = {0: first, 1: others[1] + 1, 2: len(lines)}[left]
        log.write_text("".join(lines[:stop]))
        run_small(folder / "train", out, **make_settings(folder))
        assert read_evaluations(out) == whole
        assert read_weights(out) == read_weights(run[0])


def test_tasks_have_steps_and_shots_of_their_own(folder: Path, tmp_path: Path) -> None:
    changes = {"training__eval_task_steps": 3, "training__eval_task_shots": 1}
    run_small(folder / "train", tmp_path, **make_settings(folder, **changes))
    steps = {
        kind: {step for step, name in read_evaluations(tmp_path) if kind in name} for kind in KINDS
    }
    assert steps == {"sets": {4, 8}, "tasks": {3, 6, 8}}
    options = ("--task", folder / "questions.jsonl", "--shots", 1, "--json")
    code, output, errors = velocity("eval", "--ckpt", tmp_path / "checkpoints", *options)
    assert code == 0, errors
    [expected] = json.loads(output)["tasks"]
    assert read_metrics(tmp_path, "tasks/questions/acc_norm")[8] == expected["acc_norm"]


def test_a_stop_ends_evaluations_and_the_next_start_makes_up_for_them(
    folder: Path, run: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = StopFlag()
    log_evaluation = Report.log_evaluation

    def log_and_stop(self: Report, step: int, key: str, metrics: Metrics | None) -> None:
        log_evaluation(self, step, key, metrics)
        stop.signal_number = signal.SIGTERM

    config = make_config(folder / "train", tmp_path, **make_settings(folder))
    with monkeypatch.context() as patched:
        patched.setattr(Report, "log_evaluation", log_and_stop)
        assert train(config, stop).step == 4
    assert {name.split("/")[1] for _, name in read_evaluations(tmp_path)} == {"few"}
    assert train(config).step == 8
    assert read_evaluations(tmp_path) == read_evaluations(run[0])


def test_losses_that_are_no_numbers_end_no_run(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    token_losses = Transformer.token_losses

    def spoil(self: Transformer, *arguments: Any, **options: Any) -> Any:
        losses, is_best = token_losses(self, *arguments, **options)
        return losses * math.nan, is_best

    monkeypatch.setattr(Transformer, "token_losses", spoil)
    assert run_small(folder / "train", tmp_path, **make_settings(folder)).step == 8
    said = capsys.readouterr().err
    for key in ("sets/wiki", "tasks/questions"):
        assert said.count(f"{key}: its loss is not a number") == 2
    assert not read_evaluations(tmp_path)


def test_compiled_blocks_stay_as_they_are(folder: Path, tmp_path: Path) -> None:
    config = make_config(folder / "train", tmp_path, **make_settings(folder))
    shards = open_shards(folder / "train")
    config = fit_model(config, shards.folder, shards.manifest)
    model = make_model(config.model).train()
    due = open_evaluations(config, shards, say_nothing).list_due(8)
    dealer = make_lone_dealer(torch.device("cpu"))
    with staying_compiled(model):
        assert all(metrics for _, metrics in measure_each(due, model, dealer, 32))
    assert all(weight.grad is None for weight in model.parameters())


def test_curves_are_in_tensorboard_the_page_and_the_card(
    folder: Path, run: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.page.write.can_draw", lambda: False)  # It takes seconds.
    out, _ = run
    found = read_evaluations(out)
    drawn = sorted({name for _, name in found if not name.endswith("_stderr")})
    events = EventAccumulator(str(out / "logs"))
    events.Reload()
    assert (
        sorted(
            tag for tag in events.Tags()["scalars"] if "/" in tag and tag[:4] in ("sets", "task")
        )
        == drawn
    )
    for name in drawn:
        shown = {event.step: event.value for event in events.Scalars(name)}
        assert shown == pytest.approx({step: v for (step, at), v in found.items() if at == name})
    log = read_log(out / "logs")
    panels = {panel.title: series for panel, series in fill_panels([log])}
    assert [*panels][:8] == [
        *("Loss", "Sets: bits_per_byte", "Sets: loss", "Tasks: acc", "Tasks: acc_bytes"),
        *("Tasks: acc_norm", "Tasks: perplexity", "Learning rate"),
    ]
    assert [one.label for one in panels["Sets: loss"]] == ["few", "wiki"]
    values = panels["Tasks: acc"][1].curve.values
    assert values == pytest.approx([100 * found[step, "tasks/questions/acc"] for step in (4, 8)])
    code, _, errors = velocity("report", out / "checkpoints", "--out", tmp_path)
    assert code == 0, errors
    card = make_card(gather(out / "checkpoints"), "me/model", "mit", None, False)
    assert (
        f"| tasks, questions, acc | {100 * found[8, 'tasks/questions/acc']:.2f}%".replace(
            ".", "\\."
        )
        in card
    )
    assert str(folder) not in card.replace("\\", "")


GOOD = '{"question": "a", "choices": ["b", "c"], "answer": 0}\n'
REFUSED = {
    "eval_tasks=DIR/none.jsonl": "training.eval_tasks: DIR/none.jsonl: no such file; expected one",
    "eval_tasks=x=-": "training.eval_tasks: -: no such file",
    "eval_tasks=DIR/bad.jsonl": 'training.eval_tasks: DIR/bad.jsonl: line 2: "answer" is 7',
    "eval_tasks=DIR/long.jsonl": "training.eval_tasks: DIR/long.jsonl: line 2: a choice has",
    "eval_tasks=DIR/good.jsonl,good=DIR/bad.jsonl": "are both called good; give one another name",
    "eval_tasks=DIR/two words.txt": "would be called 'two words'; give it a name of letters",
    "eval_sets=DIR/none": "training.eval_sets: DIR/none",
    "eval_sets=DIR/foreign": "training.eval_sets: DIR/foreign: was made with another tokenizer",
    "eval_sets=DIR/short": "its train split has 2 tokens, fewer than a window of 17",
    "eval_sets=hf://a/b": "training.eval_sets: hf://a/b: shards are read from the local disk",
    "eval_sets=DIR/good eval_windows=0": "training.eval_sets needs training.eval_windows",
    "eval_task_steps=0": "training.eval_task_steps is 0; expected at least 1",
}


@pytest.fixture(scope="module")
def wrong(folder: Path) -> Path:
    """Beside the sets: files and sets that cannot be evaluated."""
    (folder / "good.jsonl").write_text(GOOD)
    (folder / "two words.txt").write_text(GOOD)
    (folder / "bad.jsonl").write_text(GOOD + GOOD.replace("0}", "7}"))
    (folder / "long.jsonl").write_text(GOOD + GOOD.replace('"c"', f'"{"quick " * 40}"'))
    write_set(folder / "short", TOKENIZER_JSON, ["a"], "<|endoftext|>")
    content = json.loads(TOKENIZER_JSON)
    vocab = content["model"]["vocab"]
    vocab["H"], vocab["W"] = vocab["W"], vocab["H"]
    write_set(folder / "foreign", json.dumps(content), make_texts(9), "<|endoftext|>")
    return folder


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_evaluated_is_refused_at_the_start(
    wrong: Path, tmp_path: Path, words: str
) -> None:
    settings = dict(part.split("=", 1) for part in words.split(" ev"))
    settings = {
        f"training__{'ev' * (not key.startswith('ev'))}{key}": v.replace("DIR", str(wrong))
        for key, v in settings.items()
    }
    expected = re.escape(REFUSED[words].replace("DIR", str(wrong)))
    with pytest.raises(ValueError, match=expected) as caught:
        run_small(wrong / "train", tmp_path, **settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "logs" / METRICS).exists()


def test_lists_of_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As lists, lists of names, mappings, one word; and as a checkpoint has them."""
    monkeypatch.setenv("SETS", "/data")
    expected = ("/data/wiki", "c=/data/code")
    for text in (
        "[$SETS/wiki, c=$SETS/code]",
        "\n  - $SETS/wiki\n  - c: $SETS/code",
        "$SETS/wiki, c=$SETS/code",
    ):
        (tmp_path / "a.yaml").write_text(f"training:\n  eval_sets: {text}\n")
        config = load_config(str(tmp_path / "a.yaml"))
        assert config.training.eval_sets == expected
        kept = json.loads(json.dumps(config_to_dict(config)))
        assert config_from_dict(kept, "run_config.json") == config
    (tmp_path / "a.yaml").write_text("training:\n  eval_tasks: {a: b.jsonl}\n  eval_sets:\n")
    training = load_config(str(tmp_path / "a.yaml")).training
    assert (training.eval_tasks, training.eval_sets) == (("a=b.jsonl",), ())
    assert load_config(None, ["training.eval_sets="]).training.eval_sets == ()
    for text in ("[[a]]", "[{a: [b]}]", "[a, ]x", "{a: }", "['']"):
        (tmp_path / "a.yaml").write_text(f"training:\n  eval_sets: {text}\n")
        with pytest.raises(ValueError, match=r"a\.yaml, line 2: "):
            load_config(str(tmp_path / "a.yaml"))
    with pytest.raises(ValueError, match="NOT_SET is not set"):
        load_config(None, ["training.eval_sets=a,b=$NOT_SET/c"])


def test_lists_on_the_command_line(tmp_path: Path) -> None:
    """Written as in a file, they mean the same, and are refused in the same words."""
    for text in (
        "[a, b: shards/b]",
        "{wiki: shards/wiki, code: 'shards/a, b'}",
        " [{a: x}, c=y]",
        "[]",
    ):
        (tmp_path / "a.yaml").write_text(f"training:\n  eval_sets: {text}\n")
        there = load_config(str(tmp_path / "a.yaml")).training.eval_sets
        assert load_config(None, [f"training.eval_sets={text}"]).training.eval_sets == there
    assert load_config(None, ["training.eval_sets={a: x/y, b: 'c, d'}"]).training.eval_sets == (
        "a=x/y",
        "b=c, d",
    )
    for text, expected in {
        "{wiki:shards/wiki}": "no text \\(in a mapping, a space comes after the colon\\)",
        "{a: x, a: y}": "key training.eval_sets.a stands here twice",
        "{a: [x]}": "holds an entry that is no text",
        "{a: x": "not valid YAML",
        "{a: x}\n--- b": "a second document begins",
        "[*a]": "is an alias",
    }.items():
        with pytest.raises(ValueError, match=f"^training.eval_sets.*{expected}") as caught:
            load_config(None, [f"training.eval_sets={text}"])
        assert "\n" not in str(caught.value)

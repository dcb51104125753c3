"""Runs on the documents that meet data.where: their order, what they resume from, their traces."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from shards.documents import Document, Sidecars
from shards.index.build import build_index
from shards.index.passages import Wish
from shards.reader import open_shards
from shards.screen.lines import format_number
from shards.where.choice import choose
from tests.commands import velocity
from tests.runs import make_config, make_overrides, read_metrics, run_small
from tests.tiny import TOKENIZER_JSON
from tests.tokenized import split_of, write_set
from tests.train.test_rollback import read_bad_steps, run_bad
from train.page.log import read_log
from train.page.spikes import Spike, look_up
from train.tracing.describe import describe_documents, describe_steps
from train.tracing.passages import describe_answer, open_passages
from train.tracing.runs import trace_run, trace_settings

END = "<|endoftext|>"
TEXTS = [f"Text {n} is about {n * n}, {'word ' * (n * 7 % 23)}and it ends here." for n in range(60)]
SOURCES = ("web", "code", "books")
STEPS = 30
NUM_STEPS = "training__num_training_steps"
CONSTANT: dict[str, object] = {
    "training__schedule": "constant",
    "training__batch_size_per_device": 8,
    "training__gradient_accumulation_steps": 1,
    NUM_STEPS: STEPS,
}
WHERE = "source_file in ('web', 'books') and num_tokens >= 40"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("where") / "set"
    write_set(folder, TOKENIZER_JSON, TEXTS, END, shard_tokens=1500, sources=SOURCES)
    return folder


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of more than an epoch of what it chose, without an interruption."""
    out = tmp_path_factory.mktemp("run")
    run_small(folder, out, data__where=WHERE, **CONSTANT)
    return out


def documents_of(folder: Path, split: str = "train") -> list[Document]:
    shards = open_shards(folder)
    return Sidecars(shards, split).between(0, shards.manifest.num_tokens(split))


def chosen_texts(folder: Path) -> list[str]:
    rows = [d for d in documents_of(folder) if d.source_file != "code" and d.num_tokens >= 40]
    assert 15 < len(rows) < 40
    return [TEXTS[document.source_row] for document in rows]


def test_a_run_is_that_on_a_set_of_these_documents(
    folder: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same losses to the last bit, at each step; and it says what it chose."""
    texts = iter(chosen_texts(folder))
    held = iter([TEXTS[n] for n in range(len(TEXTS)) if split_of(n) == "validation"])
    mixed: list[str] = []
    while (text := next(held if split_of(len(mixed)) == "validation" else texts, None)) is not None:
        mixed.append(text)
    write_set(tmp_path / "alone", TOKENIZER_JSON, mixed, END, shard_tokens=900)
    run_small(tmp_path / "alone", tmp_path, **CONSTANT)
    losses = read_metrics(tmp_path)
    assert losses == read_metrics(run)
    assert losses != read_metrics_of_all(folder, tmp_path / "all")
    assert read_metrics(tmp_path, "epoch") == read_metrics(run, "epoch")
    assert read_metrics(run, "epoch")[STEPS] > 1
    capsys.readouterr()
    run_small(folder, tmp_path / "said", data__where=WHERE, training__num_training_steps=1)
    said = capsys.readouterr().err
    choice = choose(open_shards(folder), "train", WHERE)
    share = choice.num_tokens / choice.all_tokens
    assert (
        f"data.where   {choice.num_documents} of 54 documents, {choice.num_tokens:,} of "
        f"{choice.all_tokens:,} tokens ({share:.2%})"
    ) in said
    epochs = format_number(64 / choice.num_tokens)
    assert f"{epochs} epochs: a part of the documents chosen, once" in said


def read_metrics_of_all(folder: Path, out: Path) -> dict[int, float]:
    run_small(folder, out, **CONSTANT)
    return read_metrics(out)


def test_the_validation_loss_is_over_the_whole_split(folder: Path, tmp_path: Path) -> None:
    losses = [
        run_small(
            folder,
            tmp_path / name,
            training__learning_rate=0,
            training__min_learning_rate=0,
            training__num_training_steps=1,
            training__eval_windows=1000,
            **settings,
        ).validation_loss
        for name, settings in (("all", {}), ("some", {"data__where": WHERE}))
    ]
    assert losses[0] is not None
    assert losses[0] == losses[1]


def test_a_run_goes_on_as_if_it_had_not_stopped(folder: Path, run: Path, tmp_path: Path) -> None:
    for steps in (11, STEPS):
        run_small(folder, tmp_path, data__where=WHERE, **CONSTANT | {NUM_STEPS: steps})
    assert read_metrics(tmp_path) == read_metrics(run)


def test_another_condition_is_refused_and_another_spelling_is_not(
    folder: Path, tmp_path: Path
) -> None:
    run_small(folder, tmp_path, data__where=WHERE, **CONSTANT | {NUM_STEPS: 2})
    state = json.loads((tmp_path / "checkpoints/checkpoint-2/training_state.json").read_text())
    choice = choose(open_shards(folder), "train", WHERE)
    assert state["chosen"]["documents"] == choice.num_documents == len(chosen_texts(folder))
    assert state["chosen"]["tokens"] == choice.num_tokens
    for other in ("num_tokens >= 40", "null"):
        with pytest.raises(ValueError, match=r"was trained with data\.where=source_file") as caught:
            run_small(folder, tmp_path, data__where=other, **CONSTANT | {NUM_STEPS: 4})
        assert f"now it is {other}, so the order of samples would be another" in str(caught.value)
        assert "choose another infrastructure.output_dir" in str(caught.value)
    same = '(source_file in ["web", "books"]) and 40<=num_tokens'
    run_small(folder, tmp_path, data__where=same, **CONSTANT | {NUM_STEPS: 3})
    assert sorted(read_metrics(tmp_path)) == [1, 2, 3]


def test_a_plain_run_keeps_nothing_of_it(folder: Path, tmp_path: Path) -> None:
    run_small(folder, tmp_path, training__num_training_steps=1)
    state = json.loads((tmp_path / "checkpoints/checkpoint-1/training_state.json").read_text())
    assert "chosen" not in state


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("score >= 3", "has no column 'score'; those that a condition can name are num_tokens, "),
        ("num_tokens < 0", "data.where chooses 0 of 54 documents, "),
        ("source_row >=", "data.where is 'source_row >=': invalid syntax"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(
    folder: Path, tmp_path: Path, where: str, reason: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        run_small(folder, tmp_path, data__where=where)
    assert not (tmp_path / "checkpoints" / "checkpoint-8").exists()


# Traces


def test_steps_lead_to_the_chosen_documents_and_back(folder: Path, run: Path) -> None:
    """Every pair of a step and a document, in both directions, is what the windows hold."""
    shards = open_shards(folder)
    tracer = trace_run(shards, run / "checkpoints")
    stream = shards.stream("train")
    ends = [d.stop for d in documents_of(folder) if d.source_file != "code" and d.num_tokens >= 40]
    forward = set()
    for step in range(1, STEPS + 1):
        for sample, spans, documents in tracer.documents_of_step(step):
            assert 8 * (step - 1) <= sample < 8 * step
            assert sum(stop - start for start, stop in spans) == 17
            for document in documents:
                assert document.source_file != "code"
                assert document.num_tokens >= 40
                assert any(s < document.stop and e > document.start for s, e in spans)
                forward.add((step, document.start))
            # A window is cut at ends of documents alone.
            assert all(stop in ends for _, stop in spans[:-1])
            assert all(stream.read(stop - 1, 1)[0] == 0 for _, stop in spans[:-1])
    backward = {
        (step, document.start)
        for document in documents_of(folder)
        for step in tracer.steps_of_document(document)
    }
    assert forward == backward
    planned = trace_settings(
        shards,
        make_config(folder, run, data__where=WHERE, **CONSTANT),
        num_ranks=1,
    )
    assert [*planned.documents_of_step(25)] == [*tracer.documents_of_step(25)]


def test_a_trace_in_words_has_the_pieces_of_a_window(folder: Path, run: Path) -> None:
    tracer = trace_run(open_shards(folder), run / "checkpoints")
    sizes = []
    for line in describe_documents([tracer], 7):
        if line.startswith("sample"):
            sizes.append(0)
            spans = line.removesuffix(" of train").split(": tokens ")[1].split(", ")
            lengths = [int(s.split(" to ")[1]) - int(s.split(" to ")[0]) for s in spans]
            assert sum(lengths) == 17
        else:
            sizes[-1] += int(line.split()[0])
    assert sizes == [17] * 8
    left_out = next(d for d in documents_of(folder) if d.source_file == "code")
    [line] = describe_steps([tracer], left_out.url, None)
    assert line.endswith(": left out by the run's data.where, so no step saw it")
    chosen = next(d for d in documents_of(folder) if d.source_file == "web" and d.num_tokens >= 40)
    [line] = describe_steps([tracer], chosen.url, None)
    assert ": steps " in line


def test_passages_and_removals_know_what_was_left_out(folder: Path, tmp_path: Path) -> None:
    write_set(tmp_path / "set", TOKENIZER_JSON, TEXTS, END, shard_tokens=1500, sources=SOURCES)
    build_index(tmp_path / "set", lambda line: None)
    run_small(tmp_path / "set", tmp_path, data__where=WHERE)
    shards = open_shards(tmp_path / "set")
    passages = open_passages(shards, tmp_path / "checkpoints", print)
    places = {}
    for number in (4, 12, 17):  # code, web, validation
        answer = passages.answer(f"about {number * number}, word", Wish(1, 1, 1))
        [place] = answer["passages"][0]["places"]
        places[place["source_file"], place["split"]] = place
        shown = "\n".join(describe_answer(answer))
        is_left_out = "left out by the run's data.where, so no step saw it" in shown
        assert is_left_out == (place["source_file"] == "code" and place["split"] == "train")
        assert place.get("left_out", False) == is_left_out
    code, said, errors = velocity(
        "shards", "remove", tmp_path / "set", "--run", tmp_path / "checkpoints", "--dry-run",
        "--url", "https://example.com/4", "--url", "https://example.com/12",
    )  # fmt: skip
    assert code == 0, errors
    assert "code row 4: left out by the run's data.where" in said
    assert "web row 12: left out" not in said


def test_a_removal_stops_a_run_only_where_it_changes_what_is_chosen(tmp_path: Path) -> None:
    write_set(tmp_path / "set", TOKENIZER_JSON, TEXTS, END, shard_tokens=1500, sources=SOURCES)
    wheres = {"source": WHERE, "url": "url != 'https://example.com/3'"}
    for name, where in wheres.items():
        run_small(tmp_path / "set", tmp_path / name, data__where=where, **CONSTANT | {NUM_STEPS: 2})
    code, _, errors = velocity(
        "shards", "remove", tmp_path / "set", "--url", "https://example.com/12"
    )
    assert code == 0, errors
    more = CONSTANT | {NUM_STEPS: 3}
    run_small(tmp_path / "set", tmp_path / "source", data__where=wheres["source"], **more)
    with pytest.raises(ValueError, match=r"checkpoint-2: data\.where chose 53 documents of ") as e:
        run_small(tmp_path / "set", tmp_path / "url", data__where=wheres["url"], **more)
    assert "now 52 documents of" in str(e.value)
    with pytest.raises(ValueError, match=r"data\.where chose 53 documents of "):
        trace_run(open_shards(tmp_path / "set"), tmp_path / "url" / "checkpoints")


def test_the_page_counts_a_steps_documents(folder: Path, run: Path) -> None:
    tracer = trace_run(open_shards(folder), run / "checkpoints")
    traced = look_up([tracer], Spike(7, 3.0, 2.0))
    assert sum(seen.num_tokens for seen in traced.seen) <= 8 * 17
    for seen in traced.seen:
        assert TEXTS[seen.document.source_row].find(seen.text[:8].lstrip()) >= 0
    assert read_log(run / "checkpoints").config is not None


def test_a_bad_steps_documents_are_chosen_ones(folder: Path, tmp_path: Path) -> None:
    run_bad(folder, tmp_path, data__where=WHERE)
    [told] = read_bad_steps(tmp_path)
    assert told["action"] == "rollback"
    tracer = trace_run(open_shards(folder), tmp_path / "checkpoints")
    starts = tracer.order.starts(np.array([entry["sample"] for entry in told["samples"]]))
    for entry, start in zip(told["samples"], starts.tolist(), strict=True):
        spans = tracer.samples.sets.sources[0].choice.spans(start, start + 17)
        assert entry["start"] == spans[0][0]
        seen = [
            d for d in documents_of(folder) if any(s < d.stop and e > d.start for s, e in spans)
        ]
        assert [found["doc_hash"] for found in entry["documents"]] == [d.doc_hash for d in seen]
        assert {found["source_file"] for found in entry["documents"]} <= {"web", "books"}


def test_a_plan_counts_epochs_of_what_is_chosen(folder: Path, tmp_path: Path) -> None:
    words = make_overrides(folder, tmp_path, data__where=WHERE)
    code, said, errors = velocity("plan", "--gpu", "H100", "--shards", folder, "--json", *words)
    assert code == 0, errors
    choice = choose(open_shards(folder), "train", WHERE)
    assert json.loads(said)["epochs"] == pytest.approx(8 * 64 / choice.num_tokens, rel=1e-3)
    assert np.isfinite(json.loads(said)["epochs"])

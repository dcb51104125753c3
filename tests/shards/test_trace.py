"""From steps to documents and back: both directions agree, also where the rank count changed."""

from pathlib import Path

import numpy as np
import pytest

from shards.documents import Sidecars
from shards.edit.versions import find_version
from shards.inspect.show import choose_documents, decode_document
from shards.reader import open_shards
from tests.runs import make_config, run_small
from tests.texts import make_texts, prepare_quietly, write_parquet
from train.checkpoints.history import Stretch
from train.settings import load_config
from train.tracing.describe import describe_documents, describe_steps
from train.tracing.runs import make_tracer, trace_run, trace_settings


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("traced")
    for number in range(3):
        write_parquet(folder / f"{number}.parquet", [*make_texts(150, seed=number)])
    policy = {"validation_fraction": "0.1", "unit_bytes": 100, "shard_tokens": 4000}
    prepare_quietly(folder / "shards", folder, **policy)
    return folder / "shards"


def test_forward_and_backward_agree(traced: Path, tmp_path: Path) -> None:
    """Every (step, document) pair of one direction is one of the other; more than two epochs."""
    shards = open_shards(traced)
    config = make_config(traced, tmp_path)
    history = (Stretch(0, 0, 4), Stretch(200, 800, 16))
    per_epoch = (shards.manifest.num_tokens("train") - 16) // 16
    num_steps = 200 + (2 * per_epoch - 800) // 16 + 5
    tracer = make_tracer(shards, config, history, num_steps)
    forward = {
        (step, document.start)
        for step in range(1, num_steps + 1)
        for _, _, documents in tracer.documents_of_step(step)
        for document in documents
    }
    documents = Sidecars(shards, "train").between(0, shards.stream("train").num_tokens)
    backward = {
        (step, document.start)
        for document in documents
        for step in tracer.steps_of_document(document)
    }
    assert forward == backward
    # An epoch misses fewer than 2 T = 32 tokens, at the ends.
    seen = {start for _, start in forward}
    inside = [d for d in documents if d.stop > 16 and d.start < tracer.order.num_tokens - 32]
    assert {document.start for document in inside} <= seen


def test_a_windows_documents_hold_its_tokens(traced: Path, tmp_path: Path) -> None:
    shards = open_shards(traced)
    tracer = trace_settings(shards, make_config(traced, tmp_path), num_ranks=2)
    texts = {f"{n}.parquet": make_texts(150, seed=n) for n in range(3)}
    for sample, [(start, stop)], documents in tracer.documents_of_step(3):
        assert stop == start + 17
        assert start == tracer.order.starts(np.array([sample]))[0]
        assert documents[0].start <= start < documents[0].stop
        assert documents[-1].start < start + 17 <= documents[-1].stop
        for document in documents:
            text = decode_document(shards, "train", document)
            assert text == texts[document.source_file][document.source_row]
            expected = f"https://example.com/{document.source_file[0]}/{document.source_row}"
            assert document.url == expected


def test_a_run_is_traced_from_its_checkpoints(traced: Path, tmp_path: Path) -> None:
    run_small(traced, tmp_path, training__num_training_steps=3)
    run_small(
        traced,
        tmp_path,
        training__num_training_steps=6,
        training__batch_size_per_device=4,
    )
    shards = open_shards(traced)
    tracer = trace_run(shards, tmp_path / "checkpoints")
    assert tracer.num_steps == 6
    assert tracer.history == (Stretch(0, 0, 4), Stretch(3, 12, 8))
    samples = [sample for sample, _, _ in tracer.documents_of_step(4)]
    assert samples == list(range(12, 20))
    [(_, _, documents)] = [entry for entry in tracer.documents_of_step(4) if entry[0] == 12]
    lines = list(describe_steps([tracer], documents[0].url, None))
    assert f"{documents[0].doc_hash} {documents[0].source_file}" in lines[0]
    assert "4" in lines[0].split("steps ")[1].split(" of ")[0].split(", ")
    assert any(documents[0].doc_hash in line for line in describe_documents([tracer], 4))
    with pytest.raises(ValueError, match="step 7: the run has steps 1 to 6"):
        list(tracer.documents_of_step(7))


def test_documents_are_found_by_number_url_and_hash(traced: Path) -> None:
    shards = open_shards(traced)
    [(split, document)] = choose_documents(shards, "train", 200, None, None)
    assert decode_document(shards, split, document) in make_texts(150, 1) + make_texts(150, 2)
    assert (split, document) in choose_documents(shards, "train", None, document.url, None)
    assert (split, document) in choose_documents(shards, "train", None, None, document.doc_hash)
    with pytest.raises(ValueError, match="no document with the URL http://nowhere"):
        choose_documents(shards, "train", None, "http://nowhere", None)
    with pytest.raises(ValueError, match="expected 32 hexadecimal digits"):
        choose_documents(shards, "train", None, None, "xyz")
    with pytest.raises(ValueError, match="which document"):
        choose_documents(shards, "train", None, None, None)
    with pytest.raises(ValueError, match="no document 100000; the split has"):
        choose_documents(shards, "train", 100_000, None, None)


def test_a_checkpoint_names_no_file_outside_the_set(traced: Path) -> None:
    with pytest.raises(ValueError, match="is not a dataset_id of 64 hexadecimal digits"):
        find_version(traced, open_shards(traced).manifest, "../" * 4 + "secret")


def test_a_run_on_other_shards_is_refused(traced: Path, small_shards: Path, tmp_path: Path) -> None:
    run_small(small_shards, tmp_path, training__num_training_steps=1)
    with pytest.raises(ValueError, match="was trained on dataset_id"):
        trace_run(open_shards(traced), tmp_path / "checkpoints")
    with pytest.raises(ValueError, match="no checkpoint in it"):
        trace_run(open_shards(traced), tmp_path)
    assert load_config("tiny").training.num_training_steps > 1


@pytest.mark.parametrize("num_ranks", [0, -1, 2**23, 10**30])
def test_a_number_of_ranks_that_no_run_has_is_refused(
    traced: Path, tmp_path: Path, num_ranks: int
) -> None:
    config = make_config(traced, tmp_path)
    with pytest.raises(ValueError, match=f"--ranks {num_ranks} x 4 samples a rank: expected at"):
        trace_settings(open_shards(traced), config, num_ranks)

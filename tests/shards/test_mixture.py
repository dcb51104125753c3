"""Mixtures as arithmetic: exact quotas, their inverse, and stages that repeat and skip nothing."""

import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from shards.edit.remove import Wanted
from shards.mixture.entries import MAX_BLOCK, compute_shares
from shards.mixture.mixture import ALONE, Mixture, Stage
from shards.mixture.quotas import Quotas
from shards.mixture.sets import MixedOrder, Sets, open_sets
from tests.texts import make_texts
from tests.tiny import TOKENIZER_JSON
from tests.tokenized import write_set
from train.config import DataConfig
from train.settings import load_config
from train.tracing.takedown import Takedown, take_down

LENGTH = 16


@pytest.mark.parametrize(
    "shares", [(7, 3), (1, 1, 1), (5, 0, 2), (1, 30, 8, 2, 17), (0, 4), (2, 3, 3, 3, 3, 3, 3)]
)
def test_quotas_are_exact_and_can_be_inverted(shares: tuple[int, ...]) -> None:
    """Tijdeman's bound holds after every slot, over several blocks."""
    quotas, block = Quotas(shares), sum(shares)
    slots = np.arange(3 * block + 1)
    sets, ordinals = quotas.locate(slots)
    num_sets = sum(share > 0 for share in shares)
    bound = 1 - Fraction(1, 2 * num_sets - 2) if num_sets > 1 else 0
    for number, share in enumerate(shares):
        own = sets == number
        counts = np.concatenate([[0], np.cumsum(own)])
        assert np.abs(counts * block - np.arange(len(counts)) * share).max() <= bound * block
        assert counts[block] == share
        assert ordinals[own].tolist() == list(range(own.sum()))
        if share:
            assert quotas.find(number, ordinals[own]).tolist() == slots[own].tolist()
        for num_slots in (0, 1, block - 1, block, 2 * block + 1):
            assert quotas.count(num_slots)[number] == counts[num_slots]


def test_the_order_of_a_mixture_never_changes() -> None:
    """Runs go on from checkpoints by it."""
    mixture = Mixture((Stage(0, (7, 3)), Stage(12, (5, 3, 2))))
    sets, own = mixture.locate(np.arange(22))
    assert "".join(map(str, sets)) == "0100010010" + "01" + "0102010201"
    assert own[:12].tolist() == [0, 0, 1, 2, 3, 1, 4, 5, 2, 6, 7, 3]
    assert own[12:].tolist() == [8, 4, 9, 0, 10, 5, 11, 1, 12, 6]
    far, numbers = mixture.locate(np.array([10**9, 10**12, 10**15]))
    assert far.tolist() == [0, 0, 0]
    assert numbers.tolist() == [500_000_002, 500_000_000_002, 500_000_000_000_002]


def test_a_set_added_or_left_out_midway_goes_on_where_it_was() -> None:
    mixture = ALONE.change(5, (2, 1)).change(30, (2, 1, 4)).change(61, (0, 3, 1)).change(90, (1, 1))
    samples = np.arange(200)
    sets, own = mixture.locate(samples)
    for number in range(3):
        here = sets == number
        # Nothing twice, nothing left out, in every set.
        assert own[here].tolist() == list(range(here.sum()))
        assert mixture.find(number, own[here]).tolist() == samples[here].tolist()
        assert [mixture.count(n)[number] for n in samples] == [here[:n].sum() for n in samples]
    assert set(sets[:5]) == {0}
    assert set(sets[61:90]) == {1, 2}
    assert set(sets[90:]) == {0, 1}
    # Left out for good: its next sample never comes.
    assert mixture.find(2, np.array([(sets == 2).sum()])).tolist() == [-1]


def test_a_change_from_which_nothing_was_read_leaves_no_stage() -> None:
    changed = ALONE.change(8, (1, 1)).change(8, (1, 2))
    assert changed == ALONE.change(8, (1, 2))
    assert changed.change(8, (1,)) == ALONE
    assert ALONE.change(0, (1, 3)) == Mixture((Stage(0, (1, 3)),))


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ([0.7, 0.3], (7, 3)),
        ([1, 1, 2], (1, 1, 2)),
        ([12.5], (1,)),
        ([0.1, 0.2, 0.7], (1, 2, 7)),
        ([1e-3, 1], (1, 1000)),
        # Block of 100,000 by the largest remainders: 33,333.4, 33,333.3 and 33,333.3.
        ([0.333334, 0.333333, 0.333333], (33334, 33333, 33333)),
    ],
)
def test_weights_become_shares(weights: list[float], shares: tuple[int, ...]) -> None:
    assert compute_shares(weights) == shares


def test_shares_of_any_weights_are_near_them() -> None:
    weights = np.random.default_rng(1).uniform(0.01, 1, 20).tolist()
    shares = compute_shares(weights)
    assert sum(shares) == MAX_BLOCK
    exact = np.array(weights) / sum(weights) * MAX_BLOCK
    assert np.abs(np.array(shares) - exact).max() < 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("{a: 0}", "data.mixture: has the weight 0.0 for a; expected more than 0"),
        ("{a: x}", "data.mixture: has the weight 'x' for a; expected a number, such as 0.7"),
        ("{a:0.5}", "no weight for a:0.5; .* a space comes after the colon"),
        ("{a: 1, a/: 2}", "data.mixture: names a twice; give it one weight"),
        ("{a: 1, a: 2}", "data.mixture: a stands there twice; keep one"),
        (
            "[{shards: a, wheight: 1}]",
            "has an entry with wheight; expected some of shards, weight, w",
        ),
        ("[a, b]", "has the entry 'a'; expected a mapping of folders to weights, such as {web/"),
        ("web", "data.mixture: is 'web'; expected a mapping"),
        ("{}", "data.mixture: is {}; expected a mapping"),
        ("{a: 1e-9, b: 1}", "1e-09, which is less than one sample in 100,000 beside the others"),
        ("{a: 1", "data.mixture, line 1: not valid YAML"),
        ("[[[[1]]]]", "data.mixture: lists and mappings go more than 3 deep"),
        ("{a: &b 1, c: *b}", "is an alias"),
        ("{s3://b/set: 1}", "shards are read from the local disk"),
    ],
)
def test_what_is_no_mixture_is_refused(words: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(None, [f"data.mixture={words}"])


def test_a_file_or_the_command_line_names_the_sets(tmp_path: Path) -> None:
    """Either one set or several; what the command line names replaces what the file does."""
    settings = tmp_path / "run.yaml"
    settings.write_text("data:\n  mixture:\n    web/: 0.7\n    $HOME/code: 0.3\n")
    found = load_config(str(settings)).data
    assert found.mixture is not None
    assert [entry.weight for entry in found.mixture] == [0.7, 0.3]
    assert found.mixture[1].shards == f"{Path.home()}/code"
    listed = "data.mixture=[{shards: web/, weight: 0.7}, {shards: ~/code, weight: 3e-1}]"
    assert load_config(None, [listed]).data == found
    assert load_config(str(settings), ["data.shards=x"]).data == DataConfig(shards="x")
    assert load_config(str(settings), ["data.mixture=null"]).data == DataConfig()
    settings.write_text("data:\n  shards: x\n")
    assert load_config(str(settings), [listed]).data == found
    settings.write_text("data:\n  shards: x\n  mixture: {y: 1}\n")
    with pytest.raises(ValueError, match=r"run.yaml, line 2: data.shards names one set, and data"):
        load_config(str(settings))


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Sets:
    folder = tmp_path_factory.mktemp("sets")
    for number, name in enumerate(("web", "code", "books")):
        texts = make_texts(40 + 30 * number, seed=number)
        write_set(folder / name, TOKENIZER_JSON, texts, "<|endoftext|>")
    words = f"{{{folder}/web: 0.5, {folder}/code: 0.3, {folder}/books: 0.2}}"
    entries = load_config(None, [f"data.mixture={words}"]).data.entries
    return open_sets(entries, LENGTH, seed=3)


def test_each_set_is_read_in_the_order_of_a_run_on_it_alone(sets: Sets) -> None:
    order, stream = MixedOrder.begin(sets), sets.stream(checks_first_reads=True)
    samples = np.arange(1000, 1400)
    windows = stream.windows(order.starts(samples), LENGTH + 1)
    which, own = order.mixture.locate(samples)
    for number, source in enumerate(sets.sources):
        here = which == number
        alone = MixedOrder.begin(Sets((source,), (1,)))
        starts = alone.starts(own[here])
        expected = source.stream("train").windows(starts, LENGTH + 1)
        assert (windows[here] == expected).all()
        assert (starts == source.order.starts(own[here])).all()
    assert np.bincount(which).tolist() == [200, 120, 80]


def test_a_window_beyond_the_sets_is_refused(sets: Sets) -> None:
    stream = sets.stream()
    for start in (-1, stream.num_tokens - LENGTH):
        with pytest.raises(ValueError, match="asked for tokens"):
            stream.windows(np.array([0, start]), LENGTH + 1)


def test_sets_with_other_ids_are_refused(sets: Sets, tmp_path: Path) -> None:
    web = sets.first.folder
    larger = Tokenizer.from_str(TOKENIZER_JSON)
    larger.add_special_tokens(["<|begin|>"])
    texts = make_texts(40)
    write_set(tmp_path / "larger", larger.to_str(), texts, "<|endoftext|>")
    write_set(tmp_path / "begun", larger.to_str(), texts, "<|endoftext|>", "<|begin|>")
    write_set(tmp_path / "short", TOKENIZER_JSON, texts[:1], "<|endoftext|>")
    for one, other, message in (
        (web, "larger", "its number of ids is 301, but that of .*/web is 300; all sets of a mixt"),
        (tmp_path / "larger", "begun", "its begin token is 300, but that of .*/larger is None"),
        (web, "short", "/short: the split has .* tokens; windows of data.max_seq_length=160 need"),
    ):
        words = f"data.mixture={{{one}: 1, {tmp_path / other}: 1}}"
        with pytest.raises(ValueError, match=message):
            open_sets(load_config(None, [words]).data.entries, 160 if "short" in other else 16, 0)
    (tmp_path / "link").symlink_to(web)
    words = f"data.mixture={{{web}: 1, {tmp_path / 'link'}: 1}}"
    with pytest.raises(ValueError, match=r"/link: holds the same set as .*/web, or a ver"):
        open_sets(load_config(None, [words]).data.entries, LENGTH, 0)
    shutil.copytree(web, tmp_path / "later")
    wanted = Wanted(frozenset(["https://example.com/3"]))
    [*take_down(Takedown(tmp_path / "later", wanted, True), say=lambda _: None)]
    words = f"data.mixture={{{tmp_path / 'later'}: 1, {web}: 1}}"
    with pytest.raises(ValueError, match=r"/web: holds the same set as .*/later, or a version of"):
        open_sets(load_config(None, [words]).data.entries, LENGTH, 0)

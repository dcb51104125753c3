"""Files that arrive while others are encoded: their order, their number, and how it ends."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from prep.engines.prefetch import Prefetch
from prep.planning.forecast import check_disk, count_units_on_disk, forecast_run
from prep.planning.plan import Plan, plan_hub_dataset, plan_inputs, stored_hub_dataset
from prep.planning.subset import choose_sample, sample_dataset
from prep.policy import Policy
from prep.remote.hub_files import HubDataset, HubFile
from prep.remote.hub_requests import ask
from prep.remote.pinned import RemoteFile
from prep.remote.retry import Retry
from prep.tokenizer.identity import identify_gpt2
from prep.units.budget import Budget
from prep.units.ledger import Ledger
from prep.units.receipts import Audit, Receipt
from prep.units.workspace import make_folders
from tests.texts import make_texts, prepare_quietly, write_jsonl
from tests.waiting import wait_until

WAIT_SECONDS = 120.0


class Gates:
    """Downloads that end when the test lets them."""

    def __init__(self, num_units: int) -> None:
        self.begun: list[int] = []
        self.gates = [threading.Event() for _ in range(num_units)]

    def fetch(self, unit: int, retry: Retry) -> None:
        self.begun.append(unit)
        while not self.gates[unit].is_set():
            retry.pause(0.01)

    def open(self, *units: int) -> None:
        for unit in units:
            self.gates[unit].set()


def make_ledger(folder: Path, num_units: int, budget: Budget | None = None) -> Ledger:
    make_folders(folder)
    return Ledger(folder, "plan", range(num_units), budget or Budget(None, None))


def make_receipt(unit: int) -> Receipt:
    return Receipt("plan", unit, Budget(None, None), False, (), {}, Audit())


def finish(prefetch: Prefetch, ledger: Ledger, unit: int) -> None:
    ledger.add(make_receipt(unit))
    prefetch.release(unit)


def test_the_next_files_arrive_while_one_is_in_work_and_their_number_is_bounded(
    tmp_path: Path,
) -> None:
    gates, ledger = Gates(6), make_ledger(tmp_path, 6)
    with Prefetch(range(6), gates.fetch, max_units=3) as prefetch:
        gates.open(*range(6))
        for done in range(6):
            wait_until(lambda done=done: done in prefetch.ready)  # type: ignore[misc]
            assert prefetch.take(ledger, set()) == done
            wait_until(lambda done=done: len(gates.begun) == min(done + 3, 6))  # type: ignore[misc]
            time.sleep(0.02)
            assert sorted(gates.begun) == list(range(min(done + 3, 6)))
            finish(prefetch, ledger, done)
        assert prefetch.take(ledger, set()) is None


def test_a_slow_file_holds_up_no_other(tmp_path: Path) -> None:
    gates, ledger = Gates(3), make_ledger(tmp_path, 3)
    with Prefetch(range(3), gates.fetch, max_units=3) as prefetch:
        gates.open(1)
        assert prefetch.take(ledger, set()) == 1
        gates.open(2)
        wait_until(lambda: 2 in prefetch.ready)
        assert prefetch.take(ledger, {1}) == 2
        assert prefetch.take(ledger, {1, 2}) is None  # nothing yet; the engine asks again
        finish(prefetch, ledger, 1)
        finish(prefetch, ledger, 2)
        threading.Timer(0.1, gates.open, [0]).start()
        assert prefetch.take(ledger, set()) == 0  # with nothing in work it waits


def test_a_failure_is_raised_when_all_that_is_here_is_done(tmp_path: Path) -> None:
    begun: list[int] = []

    def fetch(unit: int, retry: Retry) -> None:
        begun.append(unit)
        if unit == 1:
            wait_until(lambda: 2 in begun)
            raise ValueError("unit 1: is gone")

    ledger = make_ledger(tmp_path, 50)
    with Prefetch(range(50), fetch, max_units=3) as prefetch:
        wait_until(lambda: prefetch.failure is not None and prefetch.ready == {0, 2})
        assert prefetch.take(ledger, set()) == 0
        assert prefetch.take(ledger, {0}) == 2
        assert prefetch.take(ledger, {0, 2}) is None
        finish(prefetch, ledger, 0)
        finish(prefetch, ledger, 2)
        with pytest.raises(ValueError, match="unit 1: is gone"):
            prefetch.take(ledger, set())
    assert sorted(begun) == [0, 1, 2]


def test_a_failure_that_the_set_does_not_need_is_none(tmp_path: Path) -> None:
    """--max-tokens is reached by the units in front of the one that fails."""

    def fetch(unit: int, retry: Retry) -> None:
        if unit == 1:
            raise ValueError("unit 1: is gone")

    ledger = make_ledger(tmp_path, 3, Budget(None, 5))
    with Prefetch(range(3), fetch, max_units=3) as prefetch:
        wait_until(lambda: prefetch.failure is not None and 0 in prefetch.ready)
        assert prefetch.take(ledger, set()) == 0
        ledger.is_full = True
        assert prefetch.take(ledger, set()) is None


def test_a_unit_that_must_be_done_again_is_fetched_again(tmp_path: Path) -> None:
    gates, ledger = Gates(3), make_ledger(tmp_path, 3)
    gates.open(0, 1, 2)
    with Prefetch(range(3), gates.fetch, max_units=2) as prefetch:
        wait_until(lambda: prefetch.ready == {0, 1})
        assert prefetch.take(ledger, set()) == 0
        prefetch.release(0)  # its receipt came, and the ledger took it back
        wait_until(lambda: prefetch.ready == {1, 2})
        assert prefetch.take(ledger, set()) == 1  # there is no room for unit 0 yet
        assert sorted(gates.begun) == [0, 1, 2]
        finish(prefetch, ledger, 1)
        wait_until(lambda: prefetch.ready == {0, 2})
        assert prefetch.take(ledger, set()) == 0
        assert sorted(gates.begun) == [0, 0, 1, 2]


def test_threads_that_wait_to_try_again_end_with_the_run(tmp_path: Path) -> None:
    lines: list[str] = []

    def fetch(unit: int, retry: Retry) -> None:
        def refuse() -> None:
            raise ConnectionError("refused")

        ask(refuse, f"unit {unit}", retry, lines.append)

    started = time.monotonic()
    with Prefetch(range(9), fetch, max_units=4) as prefetch:
        wait_until(lambda: len(lines) >= 4)
    assert time.monotonic() - started < WAIT_SECONDS
    assert not any(thread.is_alive() for thread in prefetch.threads)


# How much lies on the disk


def make_dataset(num_files: int, num_text_bytes: int | None = None) -> HubDataset:
    """Files of 80 to 89 MB, as RefinedWeb's are."""
    files = tuple(
        HubFile(f"data/train-{n:05d}.parquet", (80 + n % 10) * 10**6, f"{n:064x}")
        for n in range(num_files)
    )
    return HubDataset("a/b", None, "train", None, "0" * 40, files, 968, num_text_bytes)


def plan_dataset(dataset: HubDataset, **policy: object) -> Plan:
    return plan_hub_dataset(dataset, Policy(**policy), identify_gpt2())  # type: ignore[arg-type]


def test_the_disk_for_downloads_is_what_the_bound_lets_lie_there(tmp_path: Path) -> None:
    plan = plan_dataset(make_dataset(100, 10**12))
    everything = forecast_run(plan, list(range(100)), workers=4)
    assert everything.units_on_disk == 10
    assert everything.download_bytes == 10 * 89 * 10**6
    assert everything.fetched_bytes == 8450 * 10**6
    assert everything.disk_bytes == everything.set_bytes + everything.download_bytes
    parts = forecast_run(plan, list(range(100)), workers=4, num_parts=3)
    assert parts.units_on_disk == 30
    few = forecast_run(plan, [4, 5], workers=4)
    assert few.download_bytes == few.fetched_bytes == (84 + 85) * 10**6
    assert "at most 890 MB of 8.45 GB of downloads" in check_disk(
        tmp_path, forecast_run(plan_dataset(make_dataset(100, 10**9)), list(range(100)), 4)
    )


def test_earlier_documents_count_where_near_ones_are_compared() -> None:
    near = plan_dataset(make_dataset(1, 10**9), dedup="near")
    alone, appended = (
        forecast_run(near, [0], workers=1, num_earlier=count) for count in (0, 10**7)
    )
    assert appended.near_bytes - alone.near_bytes == 352 * 10**7
    assert appended.near_memory - alone.near_memory > 8 * 10**7
    exact = plan_dataset(make_dataset(1, 10**9), dedup="exact")
    assert forecast_run(exact, [0], workers=1, num_earlier=10**7).near_bytes == 0


def test_files_at_urls_count_and_local_ones_do_not(tmp_path: Path) -> None:
    local = write_jsonl(tmp_path / "a.jsonl", [*make_texts(50)])
    names = [f"https://host/{n}.jsonl.zst" for n in range(10)]
    at_urls = tuple(RemoteFile(name, 80 * 10**6, pin='"5ad"') for name in names)
    plan = plan_inputs([str(local), *names], Policy(), identify_gpt2(), at_urls=at_urls)
    assert [source.name for source in plan.sources] == ["a.jsonl", *names]
    assert [len(plan.remote_part(unit)) for unit in range(len(plan.units))] == [0] + [1] * 10
    forecast = forecast_run(plan, list(range(11)), workers=2)
    assert (forecast.units_on_disk, forecast.download_bytes) == (6, 6 * 80 * 10**6)
    assert forecast.fetched_bytes == 10 * 80 * 10**6
    assert "at most 480 MB of 800 MB of downloads" in check_disk(tmp_path, forecast)
    assert plan.num_text_bytes > 4 * 800 * 10**6
    done = forecast_run(plan, [0], workers=2)
    assert (done.units_on_disk, done.download_bytes) == (1, 0)


def test_a_short_run_fetches_little_ahead() -> None:
    plan = plan_dataset(make_dataset(100, 10**12), max_tokens=1000)
    forecast = forecast_run(plan, list(range(100)), workers=16)
    assert forecast.units_on_disk == 1
    assert count_units_on_disk(16, expected_units=4) == 6
    assert count_units_on_disk(1, expected_units=5534) == 4


def test_the_plan_of_a_dataset_with_one_config_is_that_of_before() -> None:
    dataset = make_dataset(3)
    plan_id = "472deebc500b24870d7c44fcd5bb41c042139b9b7af33524e95cafca90964ecb"
    assert plan_dataset(dataset).plan_id == plan_id
    several = replace(dataset, config="en", more_configs=("de",))
    chosen = replace(dataset, data_files=("en/*.jsonl",))
    assert len({plan_dataset(one).plan_id for one in (dataset, several, chosen)}) == 3
    for one in (several, chosen):
        assert stored_hub_dataset(plan_dataset(one).content) == one


# --sample


def test_a_sample_is_a_share_of_the_files_and_always_the_same() -> None:
    dataset = make_dataset(200)
    sample = sample_dataset(dataset, "0.1")
    assert len(sample.files) == 20
    assert sample.files == sample_dataset(dataset, "1/10").files
    assert [dataset.files.index(file) for file in sample.files] == sorted(
        dataset.files.index(file) for file in sample.files
    )
    assert set(sample.files) <= set(sample_dataset(dataset, "0.2").files)
    names = [file.name for file in sample.files[:3]]
    assert names == [f"data/train-{n:05d}.parquet" for n in (11, 43, 54)]
    assert len(sample_dataset(dataset, "0.0001").files) == 1
    assert sample_dataset(dataset, None) is dataset
    assert len(choose_sample(dataset.files, "1")) == 200


def test_a_sample_expects_as_much_less_text() -> None:
    sample = sample_dataset(make_dataset(200, 10**12), "0.1")
    share = sum(file.num_bytes for file in sample.files) / (200 * 84.5 * 10**6)
    assert sample.num_text_bytes == pytest.approx(share * 10**12, rel=1e-9)
    assert sample.num_rows is None


def test_a_stored_sample_is_not_sampled_again() -> None:
    dataset = sample_dataset(make_dataset(200), "0.1")
    plan = plan_dataset(dataset, sample="0.1")
    assert stored_hub_dataset(plan.content) == dataset
    assert plan_dataset(dataset, sample="0.1").plan_id == plan.plan_id
    assert plan_dataset(make_dataset(200)).plan_id != plan.plan_id


@pytest.mark.parametrize("sample", ["0", "-1", "1.5", "1%", "half", "1/0"])
def test_a_sample_that_is_no_share_is_refused(sample: str) -> None:
    with pytest.raises(ValueError, match=r"--sample is .*; expected a number above 0 and up to 1"):
        Policy(sample=sample)


def test_a_unit_carries_its_own_files_alone() -> None:
    plan = plan_dataset(make_dataset(5534), unit_bytes=160 * 10**6)
    part = plan.remote_part(7)
    assert [file.name for file in part] == [piece.name for piece in plan.units[7].pieces]
    assert [file.url for file in part] == [f"hf://datasets/a/b@{'0' * 40}/{f.name}" for f in part]
    assert len(part) == 2


def test_a_sample_of_local_files_is_the_same_wherever_they_lie(tmp_path: Path) -> None:
    for place in ("here", "there"):
        (tmp_path / place / "sub").mkdir(parents=True)
        for number in range(10):
            name = f"sub/{number}.jsonl" if number % 2 else f"{number}.jsonl"
            write_jsonl(tmp_path / place / name, [*make_texts(5, seed=number)])
    manifests = [
        prepare_quietly(tmp_path / f"shards-{place}", tmp_path / place, sample="0.2")
        for place in ("here", "there")
    ]
    assert manifests[0].dataset_id == manifests[1].dataset_id
    assert manifests[0].content["policy"]["sample"] == "0.2"
    assert len(manifests[0].content["sources"]["files"]) == 2
    one = prepare_quietly(tmp_path / "one", tmp_path / "here" / "0.jsonl", sample="0.01")
    assert len(one.content["sources"]["files"]) == 1


def test_thousands_of_units_are_planned_and_dealt_quickly(tmp_path: Path) -> None:
    """5,534 files: nothing here may look through all of them for each of them."""
    started = time.process_time()
    plan = plan_dataset(make_dataset(5534, 10**12))
    ledger = make_ledger(tmp_path, len(plan.units))
    fetched: list[tuple[RemoteFile, ...]] = []
    with Prefetch(
        ledger.undone, lambda unit, retry: fetched.append(plan.remote_part(unit)), max_units=8
    ) as prefetch:
        for _ in plan.units:
            unit = prefetch.take(ledger, set())
            assert unit is not None
            finish(prefetch, ledger, unit)
    assert len(plan.units) == len(fetched) == 5534
    assert time.process_time() - started < 20

"""What a run will need, estimated before it starts: tokens, and disk for set and downloads."""

import math
from dataclasses import dataclass
from pathlib import Path

from prep.planning.plan import Plan
from prep.policy import NEAR
from prep.units.signed import near_settings, signed_entry
from shards.disk.space import check_space
from shards.near.clusters import measure_need
from shards.screen.lines import format_bytes

# GPT-2 tokens per byte of English web text: 0.239 over 414 MB; a little more, to be safe.
TOKENS_PER_TEXT_BYTE = 0.25
# The sidecars' size relative to the tokens': about 60 bytes per document of about 600 tokens.
SIDECAR_SHARE = 0.06
LONG_DOCUMENT_TOKENS = 4096
# Exact copies are found first, which takes so much memory for each document sorted at a time.
EXACT_DOCUMENTS = 1 << 21
EXACT_BYTES = 200
# An average one of English web text.
DOCUMENT_TOKENS = 600


@dataclass(frozen=True)
class Forecast:
    """Estimates for what is left of a run."""

    num_tokens: int
    set_bytes: int
    # The most units whose fetched files are on disk at one time; 0 for local files.
    units_on_disk: int
    # The most that those files take together, and how much is fetched in all.
    download_bytes: int
    fetched_bytes: int
    # What --dedup near needs: disk besides, for signatures, and memory at the end.
    near_bytes: int = 0
    near_memory: int = 0

    @property
    def disk_bytes(self) -> int:
        """The most that the run adds to the disk, in bytes."""
        return self.set_bytes + self.download_bytes + self.near_bytes


def forecast_run(
    plan: Plan, undone_units: list[int], workers: int, num_parts: int = 1, num_earlier: int = 0
) -> Forecast:
    """Estimate what the undone units need, for `num_parts` parts with as many workers each.

    `num_earlier` documents of the set that they are appended to are compared with theirs.
    """
    total_bytes = max(sum(unit.num_bytes for unit in plan.units), 1)
    sizes = [plan.units[number].num_bytes for number in undone_units]
    all_tokens = int(plan.num_text_bytes * TOKENS_PER_TEXT_BYTE * sum(sizes) / total_bytes)
    num_tokens = all_tokens
    policy = plan.policy
    if policy.max_tokens is not None:
        num_tokens = min(num_tokens, policy.max_tokens)
    if policy.max_documents is not None:
        # How long they are is not known yet: assume long ones.
        num_tokens = min(num_tokens, policy.max_documents * LONG_DOCUMENT_TOKENS)
    set_bytes = int(num_tokens * plan.tokenizer.token_bytes * (1 + SIDECAR_SHARE))
    share = num_tokens / max(all_tokens, 1)
    units_on_disk = 0
    fetched = [plan.units[unit].num_bytes for unit in undone_units if plan.remote_part(unit)]
    if plan.fetches:
        units_on_disk = num_parts * count_units_on_disk(workers, share * len(fetched))
    download_bytes = sum(sorted(fetched, reverse=True)[:units_on_disk])
    fetched_bytes = max(int(sum(fetched) * share), download_bytes)
    return Forecast(
        num_tokens,
        set_bytes,
        units_on_disk,
        download_bytes,
        fetched_bytes,
        *forecast_near(plan, plan.num_text_bytes * TOKENS_PER_TEXT_BYTE, num_earlier),
    )


def forecast_near(plan: Plan, num_tokens: float, num_earlier: int) -> tuple[int, int]:
    """The disk and memory, in bytes, that --dedup near needs for earlier and all units' documents.

    The signatures of the units' documents wait on the disk; the earlier ones' are made at the end.
    """
    policy = plan.policy
    if policy.dedup != NEAR:
        return 0, 0
    num_documents = int(min(num_tokens, policy.max_tokens or num_tokens) / DOCUMENT_TOKENS) + 1
    num_documents = min(num_documents, policy.max_documents or num_documents)
    settings = near_settings(policy)
    compared = num_documents + num_earlier
    disk, memory = measure_need(compared, settings)
    memory = max(memory, min(compared, EXACT_DOCUMENTS) * EXACT_BYTES)
    return disk + num_documents * signed_entry(settings).itemsize, memory


def count_units_on_disk(workers: int, expected_units: float) -> int:
    """How many units may have fetched files on disk at one time.

    One in progress and one waiting for each worker, and two on their way; at most 1.5 times the
    units that the run is expected to take, if --max-tokens or --max-documents ends it early.

    >>> count_units_on_disk(16, expected_units=5534), count_units_on_disk(16, expected_units=0.1)
    (34, 1)
    """
    return min(2 * workers + 2, max(math.ceil(1.5 * expected_units), 1))


def check_disk(folder: Path, forecast: Forecast) -> str:
    """Say how much disk is needed and how much is free; ValueError if it is too little."""
    details = ""
    if forecast.near_bytes:
        details = (
            f"{format_bytes(forecast.near_bytes)} of it for near-duplicates, which also take about "
            f"{format_bytes(forecast.near_memory)} of memory at the end"
        )
    if forecast.download_bytes:
        details = (
            f"the set {format_bytes(forecast.set_bytes)}; at most "
            f"{format_bytes(forecast.download_bytes)} of "
            f"{format_bytes(forecast.fetched_bytes)} of downloads at one time"
            + (f"; {details}" if details else "")
        )
    advice = "choose another --out, or take less with --max-tokens"
    return check_space(folder, forecast.disk_bytes, advice, details)

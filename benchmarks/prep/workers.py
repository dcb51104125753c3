"""`velocity prep` with several workers against one: how much a second core is worth.

The input is copied into a folder --passes times, so that the half second it takes to start the
workers does not dominate. Both make the same set.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.measure import (
    OURS,
    Engine,
    Measured,
    make_parser,
    print_result,
    run_script,
    take_turns,
)
from benchmarks.prep.engines import forget_encoders
from benchmarks.prep.texts import copy_files
from prep.policy import Policy
from prep.request import Request
from prep.run import prepare
from shards.format import Manifest


def main() -> None:
    """Measure, compare the sets, print the line."""
    parser = make_parser("prep with several workers, beside one.")
    parser.add_argument("--input", type=Path, action="append", required=True, help="as for prep")
    parser.add_argument("--passes", type=int, default=32, help="how often the input is read")
    parser.add_argument("--workers", type=int, default=2, help="compared with one")
    options = parser.parse_args()
    sizes: list[int] = []
    with tempfile.TemporaryDirectory(prefix="benchmark-prep-") as name:
        folder = Path(name)
        copy_files(options.input, folder / "input", options.passes)

        def check(outputs: Mapping[str, Manifest]) -> None:
            sizes.append(int(outputs[OURS].audit["text_bytes"]))
            if len({manifest.dataset_id for manifest in outputs.values()}) != 1:
                raise ValueError("the sets differ, so no figures are given")

        engines = [
            Engine(OURS, (), lambda: start(folder, options.workers)),
            Engine("one_worker", (), lambda: start(folder, 1)),
        ]
        results = take_turns(engines, options, check)
    checks = {"sets_equal": True}  # A difference would have ended the run.
    packages = ("fastokens", "pyarrow", "numpy")
    print_result("prep.workers", options, {"text_bytes": sizes[0]}, results, checks, packages)


def start(folder: Path, workers: int) -> Callable[[], Measured]:
    """A run with this many workers, from nothing to the finished set."""

    def measure() -> Measured:
        forget_encoders()
        out = folder / "shards"
        request = Request(out, policy=Policy(), inputs=(str(folder / "input"),), workers=workers)
        started = time.perf_counter()
        manifest = prepare(request, say=lambda line: None)
        seconds = time.perf_counter() - started
        shutil.rmtree(out)
        rate = manifest.audit["text_bytes"] / 1e6 / seconds
        return Measured({"megabytes_per_second": rate}, manifest)

    return measure


if __name__ == "__main__":
    run_script(main)

"""`velocity shards verify` on real shards; `info`, `trace`, a run's start on a set as RefinedWeb's.

verify    in this process, one thread; the files are in the page cache
info      the whole command, start-up included, on a set of --units shards per split
trace     the same: `trace --config tiny --step 1`
start     what a rank does between its imports and its first batch, in this process

The large set is synthetic: the files of the small one, linked under many names.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import Figures, make_parser, measure_alone, print_result, run_script
from benchmarks.prep.texts import copy_files
from benchmarks.shards.large import make_large, read_first_batch
from prep.policy import Policy
from prep.request import Request
from prep.run import prepare
from shards.format import SPLITS
from shards.inspect.verify import verify_shards


def main() -> None:
    """Measure, and print the line."""
    parser = make_parser("verify, info and trace.")
    parser.add_argument("--input", type=Path, action="append", required=True, help="as for prep")
    parser.add_argument("--passes", type=int, default=8, help="how often the input is read")
    parser.add_argument("--units", type=int, default=5534, help="of the large set, two shards each")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="benchmark-shards-") as name:
        small, large = Path(name) / "small", Path(name) / "large"
        copy_files(options.input, Path(name) / "input", options.passes)
        inputs = (str(Path(name) / "input"),)
        policy = Policy(validation_fraction="0.1")
        manifest = prepare(
            Request(small, policy=policy, inputs=inputs, workers=1), say=lambda line: None
        )
        make_large(manifest, small, large, options.units)
        num_bytes = sum(path.stat().st_size for path in small.glob("*.*"))

        def measure() -> Figures:
            return {
                "verify_megabytes_per_second": num_bytes / 1e6 / time_verify(small),
                "info_seconds": time_command("info", large),
                "trace_seconds": time_command("trace", large, "--config", "tiny", "--step", "1"),
                "start_seconds": time_start(large),
            }

        results = measure_alone(measure, options)
    work = {"verified_bytes": num_bytes, "shards": len(SPLITS) * options.units}
    print_result("shards", options, work, results, {}, ("pyarrow", "numpy"))


def time_verify(folder: Path) -> float:
    """Seconds to read a set again; ValueError if anything is damaged."""
    started = time.perf_counter()
    damaged = [name for name, fault in verify_shards(folder) if fault]
    seconds = time.perf_counter() - started
    if damaged:
        raise ValueError(f"{folder}: {damaged[0]} is damaged")
    return seconds


def time_command(command: str, folder: Path, *options: str) -> float:
    """Seconds that a `velocity shards` command takes, start-up included."""
    arguments = [sys.executable, "-m", "cli", "shards", command, str(folder), *options]
    started = time.perf_counter()
    process = subprocess.run(arguments, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if process.returncode or not process.stdout:
        raise ValueError(f"velocity shards {command} failed: {process.stderr.strip()}")
    return seconds


def time_start(folder: Path) -> float:
    """Seconds from the manifest to the first batch of a rank, by its clock."""
    started = time.perf_counter()
    read_first_batch(folder)
    return time.perf_counter() - started


if __name__ == "__main__":
    run_script(main)

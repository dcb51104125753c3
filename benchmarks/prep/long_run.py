"""Does a long run of `velocity prep` slow down, or grow? Its rate and memory, tenth by tenth.

The input is copied into a folder --passes times. One worker, in this process; memory is what the
process holds at the end of each tenth.
"""

import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np

import prep.engines.local
from benchmarks.measure import Figures, make_parser, measure_alone, print_result, run_script
from benchmarks.prep.engines import forget_encoders
from benchmarks.prep.texts import copy_files
from prep.policy import Policy
from prep.request import Request
from prep.run import prepare
from prep.sources.local import find_files
from prep.units.receipts import Receipt

TENTHS = 10
MAX_UNIT_BYTES = 8 << 20
PAGE_BYTES = 4096


def main() -> None:
    """Measure, and print the line."""
    parser = make_parser("The rate and memory of a long run of prep, by tenths.")
    parser.add_argument("--input", type=Path, action="append", required=True, help="as for prep")
    parser.add_argument("--passes", type=int, default=30, help="how often the input is read")
    options = parser.parse_args()
    work: dict[str, int] = {}

    def measure() -> Figures:
        figures, sizes = run_long(options.input, options.passes)
        work.update(sizes)
        return figures

    results = measure_alone(measure, options)
    print_result("prep.long_run", options, work, results, {}, ("fastokens", "pyarrow", "numpy"))


def run_long(inputs: list[Path], passes: int) -> tuple[dict[str, float], dict[str, int]]:
    """Tokens per second and resident bytes in each tenth of a run, and the size of its work."""
    done: list[tuple[float, int, int]] = []

    def record(*arguments: object) -> Receipt:
        receipt: Receipt = process_unit(*arguments)
        done.append((time.perf_counter(), receipt.num_tokens, read_resident_bytes()))
        return receipt

    process_unit = prep.engines.local.process_unit
    forget_encoders()
    with (
        tempfile.TemporaryDirectory() as name,
        mock.patch("prep.engines.local.process_unit", record),
    ):
        folder = Path(name)
        copy_files(inputs, folder / "input", passes)
        # Small units, so that even a short run has tenths.
        sizes = [path.stat().st_size for path in find_files([str(folder / "input")])[0]]
        policy = Policy(unit_bytes=min(sum(sizes) // (2 * TENTHS), MAX_UNIT_BYTES))
        request = Request(
            folder / "shards", policy=policy, inputs=(str(folder / "input"),), workers=1
        )
        started = time.perf_counter()
        manifest = prepare(request, say=lambda line: None)
    seconds, tokens, resident = (np.array(column) for column in zip(*done, strict=True))
    ends = np.concatenate([[started], seconds])
    counts = np.concatenate([[0], np.cumsum(tokens)])
    cuts = np.linspace(0, len(done), TENTHS + 1).astype(int)
    rates = np.diff(counts[cuts]) / np.diff(ends[cuts])
    figures = {f"tokens_per_second_{i + 1}": float(rate) for i, rate in enumerate(rates)}
    figures |= {f"resident_bytes_{i + 1}": float(resident[cuts[i + 1] - 1]) for i in range(TENTHS)}
    figures["last_over_first"] = float(rates[-1] / rates[0])
    figures["last_over_second"] = float(rates[-1] / rates[1])
    return figures, {"text_bytes": int(manifest.audit["text_bytes"]), "units": len(done)}


def read_resident_bytes() -> int:
    """What this process holds in memory now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


if __name__ == "__main__":
    run_script(main)

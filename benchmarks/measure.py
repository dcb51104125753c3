"""What the benchmarks share: rounds in which engines take turns, and the one line of JSON.

An engine is one way to do the work: ours, which comes first, or a peer's. A round measures each
of them once, so that other load on the machine affects them all alike; ratios are taken within a
round, and the median of the rounds is reported.
"""

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import takewhile
from pathlib import Path
from typing import Any

OURS = "velocity"
# Of x86 and of ARM.
INSTRUCTIONS = ("sse4_2", "avx2", "avx512f", "avx512bw", "avx512_vbmi", "asimd", "sve", "sve2")

Json = dict[str, Any]
# By name, such as tokens_per_second.
Figures = dict[str, float]


@dataclass(frozen=True)
class Measured:
    """What an engine did in a round."""

    figures: Figures
    # What it made, so that the engines' results can be compared.
    output: Any = None


@dataclass(frozen=True)
class Engine:
    """One way to do the work."""

    name: str
    # Distributions that it needs; it is left out if one is missing.
    packages: tuple[str, ...]
    # Prepares everything that is not timed, and returns what a round calls.
    start: Callable[[], Callable[[], Measured]]


@dataclass(frozen=True)
class Results:
    """The figures of every round, by engine, and why an engine has none."""

    rounds: dict[str, list[Figures]]
    reasons: dict[str, str]


Check = Callable[[Mapping[str, Any]], None]


def make_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks share."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--rounds", type=parse_rounds, default=3, help="timed rounds, odd")
    parser.add_argument("--warmup-rounds", type=int, default=1, help="rounds before, not counted")
    return parser


def parse_rounds(text: str) -> int:
    """An odd number, so that the median is one of the rounds."""
    number = int(text) if text.isdecimal() else 0
    if number % 2 == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected an odd number such as 3")
    return number


def say(text: str) -> None:
    """Report progress on standard error."""
    print(text, file=sys.stderr, flush=True)


def take_turns(engines: Sequence[Engine], options: argparse.Namespace, check: Check) -> Results:
    """Measure the engines in turn, round by round; `check` gets what each made in a round."""
    reasons = {engine.name: why for engine in engines if (why := find_missing(engine.packages))}
    for name, reason in reasons.items():
        say(f"{name} is left out: {reason}")
    ready = {engine.name: engine.start() for engine in engines if engine.name not in reasons}
    rounds: dict[str, list[Figures]] = {name: [] for name in ready}
    for number in range(1 - options.warmup_rounds, options.rounds + 1):
        outputs = {}
        for name, measure in ready.items():
            measured = measure()
            outputs[name] = measured.output
            if number > 0:
                rounds[name].append(measured.figures)
            title = f"round {number} of {options.rounds}" if number > 0 else "warmup"
            say(f"{title}, {name}: {describe_figures(measured.figures)}")
        check(outputs)
    return Results(rounds, reasons)


def measure_alone(measure: Callable[[], Figures], options: argparse.Namespace) -> Results:
    """Measure ours alone, where there is no peer."""
    engine = Engine(OURS, (), lambda: lambda: Measured(measure()))
    return take_turns([engine], options, lambda outputs: None)


def count_equal(mine: Sequence[int], other: Sequence[int]) -> int:
    """With how many equal tokens both begin."""
    pairs = zip(mine, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def find_missing(packages: Iterable[str]) -> str:
    """Which of the packages are not installed, in words; empty where all are."""
    missing = [name for name in packages if find_version(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""


def find_version(package: str) -> str | None:
    """The version of a distribution; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def describe_figures(figures: Figures) -> str:
    """The figures in words.

    >>> describe_figures({"tokens_per_second": 123456.7, "seconds": 0.5})
    'tokens_per_second 123,457, seconds 0.5'
    """
    return ", ".join(
        f"{name} {value:,.0f}" if abs(value) >= 1000 else f"{name} {value:.3g}"
        for name, value in figures.items()
    )


def summarize(results: Results) -> Json:
    """Every engine's figures, and ours over each peer's: the median and all rounds.

    >>> rounds = {"velocity": [{"rate": 4.0}], "peer": [{"rate": 2.0}]}
    >>> summarize(Results(rounds, {}))["ratios"]
    {'peer': {'rate': {'median': 2.0, 'rounds': [2.0]}}}
    """
    rounds = results.rounds
    ratios = {
        name: collect(
            [divide(mine, other) for mine, other in zip(rounds[OURS], theirs, strict=True)]
        )
        for name, theirs in rounds.items()
        if name != OURS
    }
    return {
        "engines": {name: collect(figures) for name, figures in rounds.items()}
        | dict.fromkeys(results.reasons),
        "ratios": ratios | dict.fromkeys(results.reasons),
        "left_out": results.reasons,
    }


def divide(mine: Figures, other: Figures) -> Figures:
    """Ours over theirs, figure by figure."""
    return {name: value / other[name] for name, value in mine.items() if other.get(name)}


def collect(rounds: Sequence[Figures]) -> Json:
    """The median and all rounds of each figure."""
    columns = {name: [figures[name] for figures in rounds] for name in rounds[0]}
    return {
        name: {
            "median": shorten(statistics.median(values)),
            "rounds": [shorten(value) for value in values],
        }
        for name, values in columns.items()
    }


def shorten(value: float) -> float:
    """The number to six significant digits."""
    return float(f"{value:.6g}")


def print_result(
    benchmark: str,
    options: argparse.Namespace,
    work: Json,
    results: Results,
    checks: Json,
    packages: Iterable[str],
) -> None:
    """Print the line of JSON: the only thing on standard output."""
    figures = {"work": work, **summarize(results), "checks": checks}
    print_line(benchmark, options, figures, packages)


def print_line(
    benchmark: str, options: argparse.Namespace, figures: Json, packages: Iterable[str]
) -> None:
    """Print any figures, with all that they depend on."""
    line = {
        "benchmark": benchmark,
        "settings": describe_settings(options),
        **figures,
        "machine": describe_machine(),
        "versions": {"python": platform.python_version()}
        | {name: find_version(name) for name in packages},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    print(json.dumps(line), flush=True)


def describe_settings(options: argparse.Namespace) -> Json:
    """The settings from the command line; paths become their names."""
    settings: Json = {}
    for name, value in vars(options).items():
        if isinstance(value, Path):
            settings[name] = value.name
        else:
            paths = isinstance(value, list) and all(isinstance(path, Path) for path in value)
            settings[name] = [path.name for path in value] if paths else value
    return settings


def describe_machine() -> Json:
    """What the figures depend on, and nothing that identifies its owner."""
    from prep.engines.local import count_cores

    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    machine: Json = {
        "cpu": find_cpu_name(),
        "instructions": find_instructions(),
        "cores": count_cores(),
        "memory_gigabytes": round(memory_bytes / 1e9, 1),
        "platform": f"{platform.system()} {platform.machine()}",
        # If above the number of threads in use, something else was running too.
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "gpu": None,
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        machine["torch_threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            machine["gpu"] = torch.cuda.get_device_name()
    return machine


def find_cpu_name() -> str:
    """The processor's name, from /proc/cpuinfo where there is one."""
    return read_cpu("model name") or platform.processor()


def find_instructions() -> list[str]:
    """The vector instructions that the processor has, as far as encoders care."""
    flags = (read_cpu("flags") or read_cpu("Features")).split()
    return [name for name in INSTRUCTIONS if name in flags]


def read_cpu(field: str) -> str:
    """What /proc/cpuinfo says about the first core; empty where it says nothing."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = [line.partition(":")[2].strip() for line in lines if line.startswith(field)]
    return found[0] if found else ""


def run_script(main: Callable[[], None]) -> None:
    """Run a benchmark; errors are reported in one line."""
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"benchmarks: {error}")

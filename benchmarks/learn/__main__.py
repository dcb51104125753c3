"""Losses and tokens to a loss: nanoGPT's recipe, as shipped and tuned, beside ours by steps.

    python -m benchmarks.learn --work WORK --input TEXT --held-out TEXT

Each trial is a process of its own, and its result a file in WORK/trials: the same line again runs
what is missing. Losses are the same whatever else the machine does; times are not, so each trial's
CPU seconds are kept beside them.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.learn.forms import FORMS, Form
from benchmarks.learn.plan import Trial, list_next
from benchmarks.learn.sets import make_sets
from benchmarks.learn.summary import read_losses, summarize
from benchmarks.measure import Json, print_line, run_script, say
from shards.disk.durable import write_file
from shards.disk.json_files import load_json

PACKAGES = ("torch", "numpy", "tokenizers")
TRIALS = "trials"


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Learning per token: nanoGPT's recipe beside ours.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of sets and results")
    parser.add_argument("--form", choices=list(FORMS), default="small", help="the size of all")
    parser.add_argument("--input", type=Path, nargs="+", default=[], help="text to train on")
    parser.add_argument("--held-out", type=Path, help="text that no run reads")
    parser.add_argument("--text-column", help="the column that holds the text")
    parser.add_argument("--tokens", type=int, help="of a whole run, instead of the form's")
    parser.add_argument("--seeds", type=int, help="of the best of each arm, instead of the form's")
    parser.add_argument("--rates", type=float, nargs="+", help="to start with, each twice the last")
    parser.add_argument("--jobs", type=int, default=1, help="trials at the same time")
    parser.add_argument("--threads", type=int, default=1, help="of each trial")
    # How this script calls itself for one trial.
    parser.add_argument("--trial", help=argparse.SUPPRESS)
    return parser.parse_args()


def choose_form(options: argparse.Namespace) -> Form:
    """The form, with what the command line changes."""
    form = FORMS[options.form]
    changes = {
        "tokens": options.tokens,
        "num_seeds": options.seeds,
        "rates": options.rates and tuple(options.rates),
    }
    return replace(form, **{name: value for name, value in changes.items() if value})


def main() -> None:
    """Run what is missing, and print the line; or do one trial for the process that does so."""
    options = parse_arguments()
    form = choose_form(options)
    if options.trial:
        do_trial(form, Trial(**json.loads(options.trial)), options)
        return
    del options.trial
    make_sets(options.work, options.input, options.held_out, options.text_column, form.vocab_size)
    results = run_all(form, options)
    print_line("learn", options, {"form": asdict(form), **summarize(form, results)}, PACKAGES)


def do_trial(form: Form, trial: Trial, options: argparse.Namespace) -> None:
    """Run one trial in this process, and write its result."""
    import torch

    from benchmarks.learn.run import describe_trial, run_trial

    torch.set_num_threads(options.threads)
    result = {**describe_trial(form, trial, options.work), **run_trial(form, trial, options.work)}
    write_file(result_path(options.work, trial), json.dumps(result, allow_nan=False) + "\n")


def run_all(form: Form, options: argparse.Namespace) -> dict[Trial, Json]:
    """The results of all trials, of which those that are there are not run again."""
    from benchmarks.learn.run import describe_trial

    results: dict[Trial, Json] = {}
    (options.work / TRIALS).mkdir(exist_ok=True)
    while trials := list_next(form, read_losses(results)):
        missing = []
        for trial in trials:
            found = read_result(options.work, trial, describe_trial(form, trial, options.work))
            if found is None:
                missing.append(trial)
            else:
                results[trial] = found
        with ThreadPoolExecutor(options.jobs) as pool:
            running = [pool.submit(run_process, trial, options) for trial in missing]
            for done in as_completed(running):
                trial = done.result()
                wanted = describe_trial(form, trial, options.work)
                found = read_result(options.work, trial, wanted)
                assert found is not None, f"{trial.name} left no result"
                results[trial] = found
                say(f"{trial.name}: {found['loss']}, {found['cpu_seconds']} CPU s")
    return results


def result_path(work: Path, trial: Trial) -> Path:
    """Where a trial's result is."""
    return work / TRIALS / f"{trial.name}.json"


def read_result(work: Path, trial: Trial, wanted: Json) -> Json | None:
    """The result of a trial that was run with the same settings on the same sets; else None."""
    path = result_path(work, trial)
    if not path.exists():
        return None
    result: Json = load_json(path)
    same = all(result.get(key) == value for key, value in wanted.items())
    return result if same else None


def run_process(trial: Trial, options: argparse.Namespace) -> Trial:
    """Run a trial in a process of its own; ValueError if it fails."""
    words = ["--work", str(options.work), "--form", options.form, "--threads", str(options.threads)]
    for name in ("tokens", "seeds"):
        if value := getattr(options, name):
            words += [f"--{name}", str(value)]
    command = [sys.executable, "-m", "benchmarks.learn", *words]
    command += ["--trial", json.dumps(asdict(trial))]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    process = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False)
    if process.returncode:
        raise ValueError(f"{trial.name} failed with exit code {process.returncode}; see above")
    return trial


if __name__ == "__main__":
    run_script(main)

"""`velocity inspect`: recognizes what a folder is, and reports on it."""

import re
from collections.abc import Iterator
from pathlib import Path

from model.checkpoints.seal import (
    ADAPTER_CONFIG,
    BEST,
    CHECKPOINT_NAME,
    CONFIG,
    SEED_WEIGHTS,
    TOKENIZER,
    TRAINING_FILES,
    WEIGHTS,
    CheckpointError,
    is_sealed,
    list_checkpoints,
    read_json,
    step_of,
)
from model.export.request import CERTIFICATE
from shards.disk.layout import MANIFEST, PULL, WORK, describe_unfinished, receipts_folder
from shards.format import Manifest, read_manifest
from shards.inspect.show import describe_set
from shards.screen.lines import format_plural
from shards.screen.names import quote
from train.checkpoints.folder import REMOVED, UNFINISHED
from train.checkpoints.position import RUN_CONFIG
from train.inspect.model_folder import find_seal_faults, inspect_model
from train.inspect.report import Report
from train.inspect.tokenizer_file import describe_tokenizer
from train.inspect.uses import find_resume_command, list_model_uses
from train.reports.log_folder import METRICS
from train.start.choose import suggest_command

MAX_FOLDERS = 100


def inspect_folder(folder: Path) -> Report:
    """Report on a folder; ValueError if it is none, or holds nothing that is known here."""
    if folder.is_file():
        raise ValueError(f"{folder}: a file; give the folder that it is in")
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    report = recognize(folder) or inspect_inside(folder)
    if report is not None:
        return report
    names = sorted(path.name for path in folder.iterdir())
    found = ", ".join([*names[:5], "..."] if len(names) > 5 else names) or "nothing"
    raise ValueError(
        f"{folder}: neither a checkpoint ({CONFIG} and {WEIGHTS}), nor a run's folder of "
        f"checkpoints, nor a set of shards ({MANIFEST}), nor a tokenizer ({TOKENIZER}); found "
        f"{found}"
    )


def recognize(folder: Path) -> Report | None:
    """The report on a folder of a known kind."""
    if (folder / MANIFEST).is_file():
        return inspect_set(folder)
    if (folder / WORK).is_dir() or (folder / PULL).is_dir():
        return inspect_unfinished_set(folder)
    if (folder / CERTIFICATE).is_file() and not (folder / WEIGHTS).is_file():
        return inspect_export(folder)
    is_original = (folder / SEED_WEIGHTS).is_file()
    if is_original or any(
        (folder / name).is_file() for name in (CONFIG, WEIGHTS, ADAPTER_CONFIG, *TRAINING_FILES)
    ):
        return inspect_model(folder)
    if any(find_checkpoint_folders(folder)):
        return inspect_run(folder)
    if (folder / TOKENIZER).is_file():
        return inspect_tokenizer(folder)
    if (folder / METRICS).is_file():
        return Report(folder, "log of a run", use=[f"velocity report {quote(folder)}"])
    return None


def find_checkpoint_folders(folder: Path) -> Iterator[Path]:
    """What is, was or will be a checkpoint in a run's folder."""
    for path in sorted(folder.iterdir()):
        is_named = re.fullmatch(CHECKPOINT_NAME, path.name)
        if path.is_dir() and (is_named or path.name.startswith((UNFINISHED, REMOVED))):
            yield path


def inspect_inside(folder: Path) -> Report | None:
    """What the folders in a folder are, if any is known."""
    folders = [path for path in sorted(folder.iterdir()) if path.is_dir()][:MAX_FOLDERS]
    reports = [report for report in map(recognize, folders) if report is not None]
    if not reports:
        return None
    return Report(
        folder,
        "folder of folders",
        {f"{report.folder.name}/": report.kind for report in reports},
        [f"{report.folder.name}/: {problem}" for report in reports for problem in report.problems],
        [f"velocity inspect {quote(report.folder)}" for report in reports],
    )


def inspect_run(folder: Path) -> Report:
    """Report on a run's folder of checkpoints."""
    report = Report(folder, "folder of a run's checkpoints")
    complete = list_checkpoints(folder)
    steps = [step_of(path) for path in reversed(complete)]
    if steps:
        span = f"step {steps[0]:,}" if len(steps) == 1 else f"steps {steps[0]:,} to {steps[-1]:,}"
        report.facts["checkpoints"] = f"{len(steps):,} complete, {span}"
    else:
        report.problems.append("no complete checkpoint")
    for path in find_checkpoint_folders(folder):
        if not is_sealed(path):
            report.facts[path.name] = (
                "not complete: being written, or left by a run that was killed"
            )
        else:
            report.problems += [f"{path.name}: {fault}" for fault in find_seal_faults(path)]
    if (folder / BEST).is_file():
        _describe_best(folder, report)
    if steps:
        report.use = list_model_uses(folder, "--all")
        if (folder / BEST).is_file():
            report.use.insert(1, f"velocity sample --ckpt {quote(folder / 'best')}")
        _describe_resume(folder, complete[0], report)
        report.use.append(f"velocity inspect {quote(complete[0])}")
    if (folder / "logs" / METRICS).is_file():
        report.use.append(f"velocity report {quote(folder)}")
    return report


def _describe_resume(folder: Path, newest: Path, report: Report) -> None:
    """How the run goes on, if its newest checkpoint has a run's state."""
    if not (newest / RUN_CONFIG).is_file():
        return
    try:
        command = find_resume_command(folder, newest)
    except (ValueError, KeyError, TypeError, IndexError, OSError) as error:
        report.problems.append(f"{newest.name}: does not say how its run goes on ({error})")
        return
    if command is None:
        report.facts["to go on"] = f"it is at its end, step {step_of(newest):,}"
    else:
        report.facts["to go on"] = f"with the torchrun command below, from step {step_of(newest):,}"
        report.use.append(command)


def _describe_best(folder: Path, report: Report) -> None:
    try:
        best = read_json(folder / BEST)
    except CheckpointError as error:
        report.problems.append(str(error))
        return
    step = best.get("step")
    report.facts["best"] = f"step {step}, validation loss {best.get('validation_loss')}"
    if not is_sealed(folder / f"checkpoint-{step}"):
        report.problems.append(f"{BEST}: names step {step}, which is not complete here")


def inspect_set(folder: Path) -> Report:
    """Report on a finished set of shards; sizes are compared, contents are not read."""
    report = Report(folder, "set of shards")
    manifest = read_manifest(folder)
    for line in describe_set(folder, manifest):
        name, _, value = line.partition(" ")
        report.facts[name] = value.strip()
    report.problems += find_missing(folder, manifest)
    name = quote(folder)
    if report.problems:
        report.use = [f"velocity shards verify {name}"]
    else:
        sizes = manifest.num_tokens("train"), manifest.vocab_size, manifest.row_tokens
        tune = "torchrun --nproc_per_node 1 -m train --config sft"
        report.use = [
            f"{tune} {quote(f'data.shards={folder}')} model.start=CKPT"
            if manifest.chat
            else suggest_command(folder, *sizes),
            f"velocity shards verify {name}",
            f"velocity shards stats {name}",
        ]
    return report


def find_missing(folder: Path, manifest: Manifest) -> Iterator[str]:
    """The files of a set that are missing, and shards of another size than their tokens take."""
    for name in (TOKENIZER, *(shard.sidecar for shard in manifest.shards)):
        if not (folder / name).is_file():
            yield f"{name}: missing, though {MANIFEST} lists it"
    for shard in manifest.shards:
        path = folder / shard.name
        if not path.is_file():
            yield f"{shard.name}: missing, though {MANIFEST} lists it"
        elif path.stat().st_size != shard.num_bytes:
            yield f"{shard.name}: {path.stat().st_size:,} bytes, expected {shard.num_bytes:,}"


def inspect_unfinished_set(folder: Path) -> Report:
    """Report on a set that prep, an import or a pull has begun."""
    report = Report(folder, "unfinished set of shards")
    receipts = receipts_folder(folder)
    if receipts.is_dir():
        done = sum(path.suffix == ".json" for path in receipts.iterdir())
        report.facts["done"] = format_plural(done, "unit")
    report.problems.append(describe_unfinished(folder).removeprefix(f"{folder}: "))
    return report


def inspect_export(folder: Path) -> Report:
    """Report on a folder that `velocity export` wrote for another runtime."""
    report = Report(folder, "export for another runtime")
    try:
        told = read_json(folder / CERTIFICATE)
    except CheckpointError as error:
        report.problems.append(str(error))
        return report
    report.facts = {key: value for key, value in told.items() if isinstance(value, str)}
    return report


def inspect_tokenizer(folder: Path) -> Report:
    """Report on a folder with a tokenizer and no model."""
    report = Report(folder, "tokenizer")
    describe_tokenizer(folder / TOKENIZER, report)
    if not report.problems:
        report.use = [f"velocity prep --tokenizer {quote(folder)} --input TEXTS --out shards/"]
    return report

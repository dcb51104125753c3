"""`velocity export`: a checkpoint is written for another runtime, loaded there, and compared."""

import hashlib
import importlib
import importlib.util
import math
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from model.checkpoints.seal import hash_file, is_sealed, seal
from model.export.certificate import (
    Measured,
    cut_windows,
    describe,
    find_faults,
    measure,
    write_certificate,
)
from model.export.place import check_places, making, put
from model.export.request import CERTIFICATE, LIMITS, WEIGHT_BYTES, Format, Request
from model.export.source import Source, open_source

Say = Callable[[str], None]
# Beside the weights: tokenizer, graph, and what file systems round up to.
SPARE_BYTES = 64 << 20
# Of a text, which may be of any length: more than the windows hold.
MAX_CHARACTERS = 1 << 18


def export(request: Request, text: str, text_name: str, say: Say) -> list[list[str]]:
    """Write the export, certified on `text`; the table of what was measured.

    ValueError, with nothing left at its place, if it is too far from the checkpoint.
    """
    kind = request.kind
    check_packages(kind)
    check_places(request.places, 0)
    module: Any = importlib.import_module(kind.module)
    source = open_source(request.ckpt, request.base)
    ids = source.tokenizer.encode(text[:MAX_CHARACTERS]).ids
    windows = cut_windows(ids, source.config.max_position_embeddings)
    check_places(request.places, estimate_bytes(request, source))
    started = time.monotonic()
    with making(request.out) as partial:
        name = request.out.name
        if source.parts.base is not None:
            say(source.parts.describe())
        say(f"{source.folder}: written as {request.format}, {request.dtype}")
        made = module.write(source, partial, name, request.dtype)
        num_tokens = sum(window.numel() for window in windows)
        say(f"{source.folder}: compared on {num_tokens:,} tokens of {text_name}")
        runtime = module.open_runtime(source, made, request.dtype)
        limits = LIMITS[request.dtype]
        measured = measure(source.compute, runtime.compute, windows)
        if not math.isfinite(measured.loss):
            raise ValueError(
                f"{source.folder}: its own loss on the text is {measured.loss}: training diverged "
                "or weights are damaged; use an earlier checkpoint"
            )
        faults = find_faults(measured, limits)
        if faults:
            raise ValueError(
                f"{request.out}: not kept, as {runtime.name} reads another model from it: "
                f"{'; '.join(faults)}"
            )
        facts = source.describe() | {
            "format": request.format,
            "dtype": request.dtype,
            "runtime": runtime.name,
            "notes": runtime.notes,
            "text": text_name,
            "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "seconds": round(time.monotonic() - started, 1),
            "torch": version("torch"),
        }
        del runtime
        keep(request, source, made, partial, measured, facts)
    return [["runtime", facts["runtime"], ""], *describe(measured, limits)]


def estimate_bytes(request: Request, source: Source) -> int:
    """About the disk that an export takes while it is made."""
    each, config = WEIGHT_BYTES[request.dtype], source.config
    # Embedding and head are kept in more bits than the layers.
    wide = config.embedding_parameters * max(0.0, 2 - each)
    total = config.num_parameters() * each + wide
    return int(total * (2 if request.format == "pt2" else 1)) + SPARE_BYTES


def keep(
    request: Request,
    source: Source,
    made: Path,
    partial: Path,
    measured: Measured,
    facts: dict[str, Any],
) -> None:
    """Put the export and its certificate where they belong; the export itself comes last."""
    if request.kind.suffix is None:
        write_certificate(partial / CERTIFICATE, measured, LIMITS[request.dtype], facts)
        if request.kind.is_checkpoint and is_sealed(source.parts.words):
            seal(partial)  # So its tokenizer is read as that of the folder it is made from.
        put([partial], request.places)
        return
    facts |= {"file_sha256": hash_file(made)}
    write_certificate(partial / CERTIFICATE, measured, LIMITS[request.dtype], facts)
    put([made, partial / CERTIFICATE], request.places)


def check_packages(kind: Format) -> None:
    """Raise ValueError, saying how to get them, for packages that are missing."""
    missing = [name for name in kind.packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"this format needs {' and '.join(missing)}, not installed here; install with: "
            f"pip install 'velocitylm[{kind.extra}]'"
        )

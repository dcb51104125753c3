"""Manifests that say something else: changed, and sealed again as if they had been written so."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shards.disk.json_files import SEAL, Json, hash_canonical, seal_json
from shards.format import KEYS


def edit_manifest(folder: Path, change: Callable[[Any], object], sealed: bool = True) -> Path:
    """Change a set's manifest; one that is not sealed is like those of earlier releases."""
    path = folder / "manifest.json"
    raw: Json = json.loads(path.read_text(encoding="utf-8"))
    raw.pop(SEAL, None)
    change(raw)
    if "content" in raw:
        raw["dataset_id"] = hash_canonical(raw["content"])
    path.write_text(seal_json(raw) if sealed else make_old_text(raw), encoding="utf-8")
    return path


def make_old_text(raw: Json) -> str:
    """The text of a manifest before manifests were sealed."""
    assert set(raw) <= {*KEYS, "extra"}
    return json.dumps(raw, indent=1, ensure_ascii=False) + "\n"

"""Folders that `datasets` saved: which of their files are documents, and of which split.

Dataset.save_to_disk writes state.json, which names the files in their order, and puts the results
of later steps beside them; DatasetDict.save_to_disk writes such a folder for each split.
"""

from pathlib import Path

from shards.disk.json_files import load_json
from shards.disk.shapes import find_misshape

SPLITS_FILE, INFO_FILE, STATE_FILE = "dataset_dict.json", "dataset_info.json", "state.json"
OTHER_SPLITS, CACHES = "other splits", "caches of datasets"
_STATE_SHAPE = {"_data_files": [{"filename": str}]}


def find_unsaved(folder: Path, names: set[str], split: str) -> dict[str, str]:
    """Why some of a folder's `names` are left out; empty if `datasets` did not save it.

    Raises ValueError for a split that is not there, files that are missing, or rows in another
    order than that of the files, which releases before 2.0 could save.
    """
    if SPLITS_FILE in names:
        return _find_other_splits(folder, names, split)
    if not {INFO_FILE, STATE_FILE} <= names:
        is_ours = INFO_FILE in names
        return {name: CACHES for name in names if is_ours and _is_cache(name)}
    state = load_json(folder / STATE_FILE)
    if find_misshape(state, _STATE_SHAPE):
        return {}
    files = [entry["filename"] for entry in state["_data_files"]]
    missing = [name for name in files if name not in names]
    if missing:
        raise ValueError(
            f"{folder / STATE_FILE}: names {missing[0]}, which is not there ({len(missing):,} of "
            f"{len(files):,} files are missing); copy the folder again"
        )
    if state.get("_indices_data_files"):
        raise ValueError(
            f"{folder}: was saved with its rows in another order than its files have; load it with "
            "today's datasets and save it again"
        )
    return {name: CACHES for name in names if name.endswith(".arrow") and name not in files}


def _find_other_splits(folder: Path, names: set[str], split: str) -> dict[str, str]:
    found = load_json(folder / SPLITS_FILE)
    if find_misshape(found, {"splits": [str]}):
        return {}
    splits = found["splits"]
    if split not in splits or split not in names:
        raise ValueError(
            f"{folder}: no split {split!r}; the splits are {', '.join(splits) or 'none'}; name one "
            "with --split"
        )
    return {name: OTHER_SPLITS for name in splits if name != split and name in names}


def _is_cache(name: str) -> bool:
    return name.startswith("cache-") and name.endswith(".arrow")

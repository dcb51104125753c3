"""Where every file of a set lies, finished or in the making. No other file names one.

manifest.json                  what the set is; written last
tokenizer.json
train-00000.bin                tokens
train-00000.docs.parquet       their documents: the sidecar
versions/<id>.json             manifests of all versions, by 12 digits of their dataset_ids

.prep/                         what prep, remove and import need to go on; not part of the set
  plan.json                    what will be done, written first
  units/00000.json             the receipt of unit 0: the unit is done
  units/00000.pending          its receipt until its shards have their names
  tmp/                         files that are being written
  downloads/                   files of the Hub whose units are not done
  dedup/00000/, 00000.json     a unit written again without its copies, and its next receipt
  lock                         held by who changes the set
  parts/3-of-8.lock            held by who does part 3/8; plan.lock by who makes the plan
  import/, import.json         an import's files, and the names that they will get
  append/                      sources to append, as a set of their own with its own .prep
  version/, version/next.json  a version's files, and what is left to do when they are whole

.pull/                         what a pull needs to go on
  names.json                   files that get a name before the manifest is there
  tmp/                         files that are being fetched
  lock                         held by the pull
"""

import re
from pathlib import Path

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
VERSIONS = "versions"
WORK = ".prep"
PULL = ".pull"


def version_path(folder: Path, dataset_id: str) -> Path:
    """The manifest of a version; ValueError for what is no dataset_id."""
    if not re.fullmatch(r"[0-9a-f]{64}", dataset_id):
        raise ValueError(f"{folder}: {dataset_id!r} is no dataset_id of 64 hexadecimal digits")
    return folder / VERSIONS / f"{dataset_id[:12]}.json"


def work_folder(folder: Path) -> Path:
    """What prep and the commands that change a set need to go on."""
    return folder / WORK


def plan_path(folder: Path) -> Path:
    """The plan."""
    return work_folder(folder) / "plan.json"


def receipts_folder(folder: Path) -> Path:
    """The receipts of the units that are done."""
    return work_folder(folder) / "units"


def receipt_path(folder: Path, unit: int) -> Path:
    """A unit's receipt."""
    return receipts_folder(folder) / f"{unit:05d}.json"


def pending_path(folder: Path, unit: int) -> Path:
    """A receipt until its shards have their names, so that no shard is without a receipt."""
    return receipt_path(folder, unit).with_suffix(".pending")


def temporary_folder(folder: Path) -> Path:
    """Files that are being written."""
    return work_folder(folder) / "tmp"


def downloads_folder(folder: Path) -> Path:
    """Files of the Hub until their unit is committed."""
    return work_folder(folder) / "downloads"


def dedup_folder(folder: Path) -> Path:
    """Units that are written again without their copies."""
    return work_folder(folder) / "dedup"


def set_lock(folder: Path) -> Path:
    """The lock of whoever makes or changes the whole set."""
    return work_folder(folder) / "lock"


def parts_folder(folder: Path) -> Path:
    """The locks of the parts."""
    return work_folder(folder) / "parts"


def import_folder(folder: Path) -> Path:
    """An import's files until all of them are whole."""
    return work_folder(folder) / "import"


def import_names_path(folder: Path) -> Path:
    """The names that an import's files are about to get."""
    return work_folder(folder) / "import.json"


def append_folder(folder: Path) -> Path:
    """Sources that will be appended, made into a set first."""
    return work_folder(folder) / "append"


def version_folder(folder: Path) -> Path:
    """The files of a version while it is being made."""
    return work_folder(folder) / "version"


def next_path(folder: Path) -> Path:
    """What is left to do for a version whose files are whole."""
    return version_folder(folder) / "next.json"


def pull_folder(folder: Path) -> Path:
    """What a pull needs to go on."""
    return folder / PULL


def pull_names_path(folder: Path) -> Path:
    """The files that a pull gives a name before the manifest is there."""
    return pull_folder(folder) / "names.json"


def pull_temporary_folder(folder: Path) -> Path:
    """Files that are being fetched."""
    return pull_folder(folder) / "tmp"


def pull_lock(folder: Path) -> Path:
    """The lock of the pull."""
    return pull_folder(folder) / "lock"

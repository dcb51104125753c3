"""Where every file of a set is, finished or in progress. No other module spells these names.

manifest.json                  what the set is; written last
tokenizer.json
chat_template.jinja            of a set of chats: what made text of their messages
train-00000.bin                tokens
train-00000.docs.parquet       their documents: the sidecar
copies-00000.parquet           near copies: which were dropped, and what was kept instead
versions/<id>.json             every version's manifest, by the first 12 digits of its dataset_id

.prep/                         what prep, remove and import need to resume; not part of the set
  plan.json                    what will be done, written first
  units/00000.json             the receipt of unit 0: the unit is done
  units/00000.pending          its receipt until its shards have their final names
  tmp/                         files being written
  downloads/                   files from the Hub whose units are not done
  dedup/00000/, 00000.json     unit 0 rewritten without its copies, and its new receipt
  near/00000, decided.json     signatures of unit 0's documents; that it is decided which are copies
  contained-<id>               passages of the test texts that --drop-contained looks for
  lock                         held by whoever changes the set
  parts/3-of-8.lock            held by whoever does part 3/8; plan.lock by whoever makes the plan
  import/, import.json         an import's files, and the names they will get
  append/                      sources to append, as a set of their own with its own .prep
  version/, version/next.json  a version's files, and what is left to do once they are whole

.index/                        a suffix array over the tokens, to find documents by their text
  index.json                   which version of the set it is for; written last
  train-00000.bin.0.<id>.sa    the tokens of train-00000.bin from number 0 on, in order

.pull/                         what a pull needs to resume
  names.json                   files that get their names before the manifest is there
  tmp/                         files being fetched
  lock                         held by the pull
"""

import re
from pathlib import Path

from shards.disk.part import Part
from shards.screen.names import quote

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
CHAT_TEMPLATE = "chat_template.jinja"
VERSIONS = "versions"
COPIES = "copies-00000.parquet"
WORK = ".prep"
PULL = ".pull"
INDEX = ".index"


def version_path(folder: Path, dataset_id: str) -> Path:
    """The manifest of a version; ValueError if `dataset_id` is not one."""
    if not re.fullmatch(r"[0-9a-f]{64}", dataset_id):
        raise ValueError(f"{folder}: {dataset_id!r} is not a dataset_id of 64 hexadecimal digits")
    return folder / VERSIONS / f"{dataset_id[:12]}.json"


def work_folder(folder: Path) -> Path:
    """What prep and the commands that change a set need to resume."""
    return folder / WORK


def plan_path(folder: Path) -> Path:
    """The plan: what prep will do, settled before it reads the first document."""
    return work_folder(folder) / "plan.json"


def receipts_folder(folder: Path) -> Path:
    """The receipts of finished units."""
    return work_folder(folder) / "units"


def receipt_path(folder: Path, unit: int) -> Path:
    """A unit's receipt; the unit is done once it exists."""
    return receipts_folder(folder) / f"{unit:05d}.json"


def pending_path(folder: Path, unit: int) -> Path:
    """A receipt until its shards have their final names, so that no shard is without one."""
    return receipt_path(folder, unit).with_suffix(".pending")


def temporary_folder(folder: Path) -> Path:
    """Files being written."""
    return work_folder(folder) / "tmp"


def downloads_folder(folder: Path) -> Path:
    """Files from the Hub, kept until their unit is committed."""
    return work_folder(folder) / "downloads"


def dedup_folder(folder: Path) -> Path:
    """Units rewritten without their copies."""
    return work_folder(folder) / "dedup"


def near_folder(folder: Path) -> Path:
    """What --dedup near needs until the set is finished."""
    return work_folder(folder) / "near"


def near_path(folder: Path, unit: int) -> Path:
    """The signatures of a unit's documents."""
    return near_folder(folder) / f"{unit:05d}"


def decided_path(folder: Path) -> Path:
    """There once the set's copies-00000.parquet says which documents are copies."""
    return near_folder(folder) / "decided.json"


def contained_path(folder: Path, key: str) -> Path:
    """The passages of test texts whose documents are dropped; `key` says of which ones."""
    return work_folder(folder) / f"contained-{key}"


def set_lock(folder: Path) -> Path:
    """The lock of whoever makes or changes the whole set."""
    return work_folder(folder) / "lock"


def parts_folder(folder: Path) -> Path:
    """The locks of the parts, and of the plan while it is made."""
    return work_folder(folder) / "parts"


def part_lock(folder: Path, part: Part) -> Path:
    """The lock of whoever works on a part."""
    return parts_folder(folder) / f"{part.number}-of-{part.count}.lock"


def plan_lock(folder: Path) -> Path:
    """The lock of the part that makes the plan."""
    return parts_folder(folder) / "plan.lock"


def import_folder(folder: Path) -> Path:
    """An import's files until all of them are whole."""
    return work_folder(folder) / "import"


def import_names_path(folder: Path) -> Path:
    """The names that an import's files will get."""
    return work_folder(folder) / "import.json"


def append_folder(folder: Path) -> Path:
    """Sources to append, prepared as a set of their own first."""
    return work_folder(folder) / "append"


def version_folder(folder: Path) -> Path:
    """The files of a version while it is being made."""
    return work_folder(folder) / "version"


def next_path(folder: Path) -> Path:
    """What is left to do for a version once its files are whole."""
    return version_folder(folder) / "next.json"


def pull_folder(folder: Path) -> Path:
    """What a pull needs to resume."""
    return folder / PULL


def pull_names_path(folder: Path) -> Path:
    """The files that a pull names before the manifest is there."""
    return pull_folder(folder) / "names.json"


def pull_temporary_folder(folder: Path) -> Path:
    """Files being fetched."""
    return pull_folder(folder) / "tmp"


def pull_lock(folder: Path) -> Path:
    """The lock of whichever pull is running."""
    return pull_folder(folder) / "lock"


def index_folder(folder: Path) -> Path:
    """The suffix array over a set's tokens."""
    return folder / INDEX


def index_path(folder: Path) -> Path:
    """Which version of the set the index is for, and its files."""
    return index_folder(folder) / "index.json"


def array_path(folder: Path, shard: str, first: int, sha256: str) -> Path:
    """The array over the tokens of a shard, of this sha256, from number `first` on."""
    return index_folder(folder) / f"{shard}.{first}.{sha256[:16]}.sa"


def parse_array_name(name: str) -> tuple[str, str] | None:
    """The shard that an array's file is over, and how its sha256 begins; None for other names.

    >>> parse_array_name("train-00000.r1.bin.4096.0123456789abcdef.sa")
    ('train-00000.r1.bin', '0123456789abcdef')
    """
    found = re.fullmatch(r"([^/]+\.bin)\.[0-9]+\.([0-9a-f]{16})\.sa", name)
    return (found[1], found[2]) if found else None


def list_arrays(folder: Path, shard: str = "*") -> list[Path]:
    """The arrays that are there, or those over one shard, in whichever version."""
    return sorted(index_folder(folder).glob(f"{shard}.*.sa"))


def describe_unfinished(folder: Path) -> str:
    """Why there is no manifest in `folder`, and what to do."""
    if not folder.is_dir():
        return (
            f"{folder}: no such folder; make the shards with: velocity prep --out {quote(folder)}"
        )
    if work_folder(folder).is_dir():
        return (
            f"{folder}: prep has not finished here (no {MANIFEST}); "
            "run the same prep command again, it resumes where it stopped"
        )
    if pull_folder(folder).is_dir():
        return (
            f"{folder}: velocity shards pull has not finished here (no {MANIFEST}); "
            "run the same command again, it resumes where it stopped"
        )
    return (
        f"{folder}: no {MANIFEST} here, so this is not a set of shards; "
        "make one with: velocity prep"
    )

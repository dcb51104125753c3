"""`velocity prep --out s3://...`: a set made in a local folder, and uploaded as it grows.

The folder ("staging") is an ordinary --out. A thread looks for new receipts and sends their
shards. When the set is finished, `push_shards` compares what is at the URL with the manifest,
sends what is missing, and writes the manifest there last.
"""

import io
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from prep.policy import Policy
from prep.request import Request
from prep.units.receipts import load_receipt
from shards.disk.layout import MANIFEST, plan_path, receipts_folder
from shards.edit.lineage import ENDINGS
from shards.exchange.claim import UPLOAD, Note, name_plan, read_note, refuse, write_note
from shards.exchange.push import list_shard, push_shards
from shards.exchange.send import LocalFile, is_there, send_file
from shards.exchange.storage import Storage, StorageError, open_storage
from shards.exchange.transfer import Meter, Stopped, keep_trying, transfer_all
from shards.format import Shard
from shards.screen.lines import Say
from shards.screen.names import quote
from shards.screen.url import is_url, name_folder, restore_url, show_url

LOOK_SECONDS = 1.0
FAULT_SECONDS = 60.0
# The cores are for encoding; a few files at a time keep the network busy.
NUM_FILES = 4


def split_out(out: Path, staging: Path | None, compress: bool) -> tuple[str | None, Path]:
    """The URL of --out, if it is one, and the folder in which the set is made."""
    if not is_url(out):
        for option, given in (("--staging", staging is not None), ("--compress", compress)):
            if given:
                raise ValueError(f"{option} is for an --out that is a URL, but {out} is a folder")
        return None, out
    url = restore_url(out)
    return url, staging or Path(name_folder(url))


def sends_units(policy: Policy) -> bool:
    """Whether a unit's shards are final as soon as they are committed.

    With limits a unit may be done again, and with --dedup it is cut once all units are done.
    """
    limits = (policy.max_documents, policy.max_tokens, policy.dedup)
    return all(limit is None for limit in limits)


def check_url(url: str, folder: Path, appends: bool) -> None:
    """Ask the storage before hours are spent: ValueError if the URL is not free for this set."""
    storage = open_storage(url)
    listed = storage.list_files()
    if MANIFEST in listed and not (folder / MANIFEST).exists():
        if appends:
            raise ValueError(
                f"{folder}: no set here to append to; fetch it with: "
                f"velocity shards pull {quote(show_url(url))} {quote(folder)}"
            )
        refuse(storage, f"holds a finished set, and {folder} does not")
    if UPLOAD in listed and not plan_path(folder).exists():
        refuse(storage, f"holds an unfinished upload that {folder} knows nothing about")


@contextmanager
def sending(url: str | None, request: Request, say: Say, compress: bool) -> Iterator[None]:
    """Send to `url`, if any, what is made inside; a part's shards are sent by --finish."""
    if url is None:
        yield
        return
    check_url(url, request.out, appends=request.task == "append")
    say(f"making the set in {request.out} and sending it to {show_url(url)}")
    if request.task == "whole" and sends_units(request.policy):
        with upload_beside(url, request.out, compress, say):
            yield
    else:
        yield
    if request.part is None:
        push_shards(request.out, url, say, compress)


@contextmanager
def upload_beside(url: str, folder: Path, compress: bool, say: Say) -> Iterator[None]:
    """Send what is committed in `folder` while the set is being made."""
    upload = Upload(open_storage(url), folder, compress, say)
    upload.start()
    try:
        yield
    finally:
        upload.stop()


class Upload:
    """A thread that sends the shards of each new receipt."""

    def __init__(self, storage: Storage, folder: Path, compress: bool, say: Say) -> None:
        self.storage = storage
        self.folder = folder
        self.compress = compress
        self.say = say
        self.sent: set[str] = set()
        self.listed: dict[str, int] | None = None
        self.ending = threading.Event()
        self.meter = make_meter()
        self.thread = threading.Thread(target=self.run, name="upload", daemon=True)

    def start(self) -> None:
        """Start sending, in the background."""
        self.thread.start()

    def stop(self) -> None:
        """Stop at the next piece; what is left is sent when the set is finished."""
        self.ending.set()
        self.meter.stopping.set()
        self.thread.join()

    def run(self) -> None:
        """Send what is new until stopped. A fault is reported, and never ends prep."""
        seconds = LOOK_SECONDS
        while not self.ending.wait(seconds):
            try:
                self.send_new()
                seconds = LOOK_SECONDS
            except Stopped:
                return
            except StorageError as error:
                self.say(f"{error}; prep continues, and the upload will be tried again")
                self.meter, self.listed = make_meter(), None
                seconds = FAULT_SECONDS
            except (ValueError, OSError) as error:
                self.say(f"{error}; the upload waits until the set is finished in {self.folder}")
                return

    def send_new(self) -> None:
        """Send the shards of new receipts."""
        receipts = sorted(receipts_folder(self.folder).glob("[0-9]*.json"))
        for path in receipts:
            if path.name not in self.sent:
                receipt = load_receipt(path, int(path.stem))
                sidecars = receipt.sidecar_sha256
                self.send_shards(receipt.plan_id, receipt.shards, sidecars)
                self.sent.add(path.name)

    def send_shards(
        self, plan_id: str, shards: Sequence[Shard], sidecar_sha256: dict[str, str]
    ) -> None:
        """Send the files of a unit, except those already there from an earlier run."""
        listed = self.claim(plan_id)
        files = [
            file
            for shard in shards
            for file in list_shard(self.folder, shard, sidecar_sha256.get(shard.sidecar))
        ]

        def work(file: LocalFile, meter: Meter) -> str | None:
            if not is_there(self.storage, listed, file):
                keep_trying(lambda: send_file(self.storage, file, self.compress, meter), meter)
            return None

        faults = transfer_all(files, work, self.meter, NUM_FILES)
        assert not faults, faults

    def claim(self, plan_id: str) -> dict[str, int]:
        """The files at the URL and their sizes, once it is known to be this plan's."""
        if self.listed is None:
            self.listed = self.storage.list_files()
            owner = name_plan(plan_id)
            if UPLOAD not in self.listed:
                refuse_files(self.storage, self.listed)
                write_note(self.storage, Note(owner, []))
            elif read_note(self.storage).owner != owner:
                refuse(self.storage, "holds an upload of another set that has not finished")
        return self.listed


def make_meter() -> Meter:
    """A meter that shows nothing: prep has its own progress line."""
    return Meter(0, 0, io.StringIO())


def refuse_files(storage: Storage, listed: dict[str, int]) -> None:
    """ValueError if files of another origin are there that look like a set's."""
    taken = [name for name in listed if name.endswith(ENDINGS)]
    if MANIFEST in listed or taken:
        refuse(storage, f"holds a file {(taken or [MANIFEST])[0]} of another origin")

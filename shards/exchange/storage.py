"""A folder at a URL: s3:// and gs:// through pyarrow.fs, and file:// and plain paths as well.

    storage = open_storage("s3://bucket/prefix")
    storage.list_files()                     # {"manifest.json": 6210, ...}
    storage.read_bytes("manifest.json")

What pyarrow takes from the environment applies: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ~/.aws,
GOOGLE_APPLICATION_CREDENTIALS; so do options in the URL's query. docs/storage.md lists them.
"""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from shards.disk.durable import commit, naming, open_new, sync_file
from shards.disk.folders import make_folder
from shards.disk.json_files import check_json_size
from shards.screen.secrets import hide, learn_words
from shards.screen.url import EXPECTED, check_url, is_url, restore_url, show_url

# Each piece is a request to S3: large pieces, so that round trips cost little.
CHUNK_BYTES = 8 << 20
# pyarrow's own limit for gs:// is a silent quarter of an hour.
GCS_RETRY_SECONDS = 30

DENIED = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|INVALID_CLIENT_TOKEN_ID"
    r"|MISSING_AUTHENTICATION_TOKEN|HTTP status 40[13]|PERMISSION_DENIED|UNAUTHENTICATED"
    r"|OAuth2 access token|ExpiredToken|InvalidToken|TokenRefreshRequired"
)
NO_BUCKET = re.compile(r"NO_SUCH_BUCKET|Bucket '[^']*' not found|bucket does not exist")
NO_NETWORK = re.compile(r"NETWORK_CONNECTION|CURL error|curlCode|Could not resolve|UNAVAILABLE")


class StorageError(OSError):
    """A fault that may pass: the same request may succeed later."""


@dataclass(frozen=True)
class Storage:
    """The files directly in one folder."""

    files: fs.FileSystem
    root: str
    # As it is printed, without credentials.
    name: str

    def inside(self, name: str) -> "Storage":
        """A folder in this one."""
        return Storage(self.files, self._path(name), f"{self.name}/{name}")

    def list_files(self) -> dict[str, int]:
        """The size of each file, by name; empty if there is no such folder."""
        with self.telling(""):
            try:
                found = self.files.get_file_info(fs.FileSelector(self.root))
            except FileNotFoundError:
                return {}
        return {info.base_name: info.size for info in found if info.type == fs.FileType.File}

    def size_of(self, name: str) -> int | None:
        """A file's size, or None if there is no such file."""
        with self.telling(name):
            info = self.files.get_file_info(self._path(name))
        return int(info.size) if info.type == fs.FileType.File else None

    def read_bytes(self, name: str) -> bytes:
        """The bytes of a small file; ValueError if it is larger than any JSON file of ours."""
        content = bytearray()
        with self.open(name) as file:
            while piece := file.read(CHUNK_BYTES):
                content += piece
                check_json_size(len(content), f"{self.name}/{name}")
        return bytes(content)

    def read_tail(self, name: str, num_bytes: int) -> bytes:
        """The last `num_bytes` of a file; all of a shorter one."""
        with self.telling(name), self.files.open_input_file(self._path(name)) as file:
            start = max(file.size() - num_bytes, 0)
            return bytes(file.read_at(num_bytes, start))

    @contextmanager
    def open(self, name: str) -> Iterator[pa.NativeFile]:
        """A file to be read from its beginning, in pieces of CHUNK_BYTES.

        It is read as it is: left to itself, pyarrow would unpack what ends in .zst.
        """
        with (
            self.telling(name),
            self.files.open_input_stream(self._path(name), compression=None) as file,
        ):
            yield file

    def write(self, name: str, chunks: Iterable[bytes]) -> int:
        """Write a file and return its size; it gets its name once it is whole, not before."""
        with self.telling(name):
            if isinstance(self.files, fs.LocalFileSystem):
                written = write_local(Path(self._path(name)), chunks)
            else:
                written = self._write_object(name, chunks)
        found = self.size_of(name)
        if found != written:
            raise StorageError(f"{self.name}/{name}: has {found} bytes after {written} were sent")
        return written

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""
        with self.telling(name), suppress(FileNotFoundError):
            self.files.delete_file(self._path(name))

    def _write_object(self, name: str, chunks: Iterable[bytes]) -> int:
        written = 0
        file = self.files.open_output_stream(self._path(name), compression=None)
        try:
            for chunk in chunks:
                file.write(chunk)
                written += len(chunk)
        except BaseException:
            # All that pyarrow offers here is to close, which makes an object of what was sent.
            with suppress(OSError):
                file.close()
            with suppress(OSError):
                self.files.delete_file(self._path(name))
            raise
        file.close()
        return written

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    @contextmanager
    def telling(self, name: str) -> Iterator[None]:
        """Turn an error inside into one line that names the file."""
        where = f"{self.name}/{name}".rstrip("/")
        try:
            yield
        except StorageError:
            raise
        except FileNotFoundError as error:
            if error.filename is not None:  # A file of ours, not of the storage.
                raise
            raise ValueError(f"{where}: no such file") from None
        except (OSError, pa.ArrowException) as error:
            if getattr(error, "errno", None) is not None:  # The local disk's, clear as it is.
                raise
            raise explain(where, error) from error


def open_storage(url: str | Path) -> Storage:
    """The folder at a URL or path; no file in it is looked at yet.

    Raises ValueError with one line if the URL is not one, StorageError if S3 cannot be reached.
    """
    if not is_url(url):
        folder = Path(url).absolute()
        return Storage(fs.LocalFileSystem(), str(folder), str(url).rstrip("/"))
    check_url(str(url))
    url = restore_url(url)
    name = show_url(url)
    learn_words([url])
    if re.match(r"gc?s://", url) and "retry_limit_seconds" not in url:
        url += f"{'&' if '?' in url else '?'}retry_limit_seconds={GCS_RETRY_SECONDS}"
    try:
        files, root = fs.FileSystem.from_uri(url)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(
            f"{name}: is not a folder's URL ({first_line(error)}); {EXPECTED}"
        ) from None
    except OSError as error:
        raise explain(name, error) from error
    return Storage(files, root.rstrip("/"), name)


def write_local(path: Path, chunks: Iterable[bytes]) -> int:
    """Write a file in a plain folder under another name, then rename it; returns its size."""
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    written = 0
    try:
        with open_new(temporary) as file:
            for chunk in chunks:
                with naming(path):
                    written += file.write(chunk)
            with naming(path):
                sync_file(file)
        commit(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return written


def read_temporary(name: str) -> str:
    """Which file a temporary one in a plain folder was to become; "" for other names.

    >>> read_temporary(".train-00000.bin.4711.tmp"), read_temporary("notes.tmp")
    ('train-00000.bin', '')
    """
    found = re.fullmatch(r"\.(.+)\.\d+\.tmp", name)
    return found[1] if found else ""


def explain(where: str, error: Exception) -> Exception:
    """A storage error in one line: ValueError if only the user can fix it, else StorageError."""
    text = first_line(error)
    if NO_BUCKET.search(text):
        return ValueError(f"{where}: there is no such bucket; check its name, and the endpoint")
    if DENIED.search(text):
        return ValueError(
            f"{where}: access is denied ({text}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or AWS_PROFILE, for s3://, and GOOGLE_APPLICATION_CREDENTIALS for gs://"
        )
    if NO_NETWORK.search(text):
        return StorageError(
            f"{where}: cannot be reached ({text}); check the network, and AWS_ENDPOINT_URL if the "
            "storage is not Amazon's; run the same command again to resume"
        )
    return StorageError(f"{where}: {text}")


def first_line(error: Exception) -> str:
    """The first line of a storage's error, without secrets, request ids and details.

    >>> first_line(OSError("When listing: AWS Error SLOW_DOWN: wait (Request ID: 4Zq)"))
    'When listing: AWS Error SLOW_DOWN: wait'
    """
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    line = re.sub(r" \(Request ID: \S*\)| error_info=.*", "", line)
    return hide(line)[:300]

"""A real S3 server on this machine, in a process of its own: moto's."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pyarrow import fs

from tests.servers.ports import find_port


@dataclass(frozen=True)
class S3Server:
    """Where the server listens, and what was asked of it."""

    address: str
    log: Path

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs to use it, as a user would set it."""
        return {
            "AWS_ENDPOINT_URL": f"http://{self.address}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def requests(self, method: str) -> list[str]:
        """The paths that were asked for with this method, in order, without their queries."""
        return re.findall(rf'{method} /([^ ?"]*)\S* HTTP', self.log.read_text())


@contextmanager
def run_s3_server(folder: Path, bucket: str) -> Iterator[S3Server]:
    """Start a server with one bucket; its log lies in `folder`."""
    port = find_port()
    log = folder / "s3.log"
    with open(log, "wb") as stream:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=stream, env=os.environ | {"NO_COLOR": "1"}
        )
    try:
        wait_until_it_listens(process, port)
        server = S3Server(f"127.0.0.1:{port}", log)
        make_bucket(server, bucket)
        yield server
    finally:
        process.kill()
        process.wait()


def wait_until_it_listens(process: subprocess.Popen[bytes], port: int) -> None:
    """Return when a connection to the server can be made."""
    deadline = time.monotonic() + 200
    while True:
        assert process.poll() is None, "the S3 server did not start"
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert time.monotonic() < deadline, "the S3 server does not answer"
            time.sleep(0.05)


def make_bucket(server: S3Server, bucket: str) -> None:
    files = fs.S3FileSystem(
        access_key="test",
        secret_key="test",
        region="us-east-1",
        scheme="http",
        endpoint_override=server.address,
        allow_bucket_creation=True,
    )
    files.create_dir(bucket)

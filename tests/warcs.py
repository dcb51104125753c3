"""WARC files that the tests make, with warcio."""

import io
from collections.abc import Sequence
from pathlib import Path

from warcio.warcwriter import WARCWriter

WET_TYPE = "text/plain"


class Writer(WARCWriter):
    """warcio's, without temporary files, which it leaves open."""

    _create_temp_file = staticmethod(io.BytesIO)


def write_warc(
    path: Path, records: Sequence[tuple[str, str, str, bytes]], gzip: bool = False
) -> Path:
    """Write records of (type, URL, type of the content, content) with warcio."""
    with open(path, "wb") as file:
        writer = Writer(file, gzip=gzip)
        writer.write_record(writer.create_warcinfo_record("a.wet", {"software": "a test"}))
        for kind, url, content_type, content in records:
            record = writer.create_warc_record(
                url,
                kind,
                payload=io.BytesIO(content),
                warc_content_type=content_type,
                warc_headers_dict={"WARC-Identified-Content-Language": url[-3:]},
            )
            writer.write_record(record)
    return path


def make_wet(texts: Sequence[str]) -> list[tuple[str, str, str, bytes]]:
    return [
        ("conversion", f"http://x.org/{i}?l=eng", WET_TYPE, text.encode())
        for i, text in enumerate(texts)
    ]

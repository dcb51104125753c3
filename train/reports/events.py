"""TensorBoard's event files, written one event at a time.

torch's SummaryWriter writes from a thread: it loses what it held when its disk was full, and raises
later, somewhere else.
"""

import io
import os
import platform
import time
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.text.metadata import create_summary_metadata
from tensorboard.summary.writer.record_writer import RecordWriter

from train.reports.log_folder import PATTERN

VERSION = "brain.Event:2"
NUMBERS = count()


def name_events(folder: Path) -> Path:
    """A new name for an event file, of the form that TensorBoard looks for."""
    place = f"{platform.node()}.{os.getpid()}.{next(NUMBERS)}"
    return folder / PATTERN.replace("*", f"{int(time.time()):010d}.{place}")


def begin_events(purge_step: int | None) -> bytes:
    """The head of an event file; what others say of steps from `purge_step` on is not shown."""
    head = encode([Event(wall_time=time.time(), file_version=VERSION)])
    return head if purge_step is None else head + purge_events(purge_step)


def purge_events(step: int) -> bytes:
    """An event after which what was said before of steps from `step` on is not shown."""
    start = SessionLog(status=SessionLog.START)
    return encode([Event(wall_time=time.time(), step=step, session_log=start)])


def describe_scalars(step: int, values: Mapping[str, float]) -> bytes:
    """An event for each value at a step."""
    now = time.time()
    return encode(
        Event(
            wall_time=now, step=step, summary=Summary(value=[Summary.Value(tag=t, simple_value=v)])
        )
        for t, v in values.items()
    )


def describe_texts(step: int, texts: Mapping[str, str]) -> bytes:
    """An event for each text at a step."""
    now = time.time()
    return encode(
        Event(
            wall_time=now,
            step=step,
            summary=Summary(
                value=[
                    Summary.Value(
                        tag=tag,
                        metadata=create_summary_metadata(tag, ""),
                        tensor=TensorProto(dtype=DT_STRING, string_val=[text.encode()]),
                    )
                ]
            ),
        )
        for tag, text in texts.items()
    )


def encode(events: list[Event] | Iterator[Event]) -> bytes:
    """Events as the records of a file."""
    stream = io.BytesIO()
    writer = RecordWriter(stream)
    for event in events:
        writer.write(event.SerializeToString())
    return stream.getvalue()

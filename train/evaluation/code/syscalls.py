"""What a program in the sandbox may not ask of the kernel, as a filter in classic BPF (seccomp).

It is one more wall behind namespaces and limits, for what those leave open: processes and threads
(a limit on their number does not hold for root), sockets of kinds that no network namespace keeps
in, memory that no limit counts, keys of the user, and ways to more rights inside. linux/filter.h
and linux/seccomp.h have the format.
"""

import struct
from collections.abc import Sequence

# By machine: the architecture as audit knows it, and the numbers of the calls.
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
DENIED: dict[str, tuple[int | None, int | None]] = {
    "fork": (57, None),
    "vfork": (58, None),
    "clone": (56, 220),
    "clone3": (435, 435),
    "socket": (41, 198),
    "io_uring_setup": (425, 425),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "ptrace": (101, 117),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
}
# The calls of x86_64 with 32-bit pointers have numbers from here on.
X32 = 0x40000000
LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
NUMBER_OFFSET, ARCHITECTURE_OFFSET = 0, 4
ALLOW, KILL, EPERM = 0x7FFF0000, 0x80000000, 0x00050001


def make_filter(machine: str) -> bytes:
    """The filter of a machine, as `uname -m` calls it: denied calls fail with EPERM."""
    column = [*ARCHITECTURES].index(machine)
    numbers = [row[column] for row in DENIED.values()]
    denied = [number for number in numbers if number is not None]
    size = len(denied)
    # A jump passes over so many instructions.
    code = [
        (LOAD, 0, 0, ARCHITECTURE_OFFSET),
        (EQUAL, 1, 0, ARCHITECTURES[machine]),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER_OFFSET),
        (AT_LEAST, size + 1, 0, X32),
        *((EQUAL, size - place, 0, number) for place, number in enumerate(denied)),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, EPERM),
    ]
    return encode(code)


def encode(code: Sequence[tuple[int, int, int, int]]) -> bytes:
    """Instructions (operation, jump if true, jump if false, constant) as the kernel reads them."""
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)

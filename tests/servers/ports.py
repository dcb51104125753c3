"""Ports for servers that tell nobody which one they got: they must be known before."""

import socket
from random import SystemRandom

# Below those that systems give to connections and to servers that ask for any: between the moment
# when a port is found free and the one when it is used, nobody is given it.
FIRST, LAST = 15_000, 32_000


def find_port() -> int:
    """A port of this machine that is free, and stays so unless somebody names it."""
    while True:
        port = SystemRandom().randint(FIRST, LAST)
        with socket.socket() as found:
            try:
                found.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port

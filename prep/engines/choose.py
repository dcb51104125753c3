"""Which engine does the units: --engine."""

from prep.engines.contract import Engine
from prep.request import Request


def choose_engine(request: Request) -> Engine:
    """The engine that was asked for, ready to work; each is loaded only where it is used."""
    match request.engine:
        case "ray":
            from prep.engines.ray_cluster import start
        case _:
            from prep.engines.local import start
    return start(request)

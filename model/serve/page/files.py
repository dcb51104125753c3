"""The page's files: plain HTML, CSS and JavaScript modules, as they lie beside this one.

A browser is told to take nothing from anywhere else, to run no script but these, and to show the
page in no other one's frame: what a model writes, or a stranger's link, can start nothing.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

Endpoint = Callable[[Request], Awaitable[Response]]

FOLDER = Path(__file__).parent
KINDS = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # Another version of the package has other files.
    "Cache-Control": "no-cache",
}


def make_page() -> list[Route]:
    """The page at / and its files below /page/, read now and never again."""
    routes = []
    for path in sorted(FOLDER.iterdir()):
        if path.suffix in KINDS:
            place = "/" if path.name == "index.html" else f"/page/{path.name}"
            routes.append(Route(place, make_endpoint(path.read_bytes(), KINDS[path.suffix])))
    return routes


def make_endpoint(content: bytes, kind: str) -> Endpoint:
    """What answers with a file."""

    async def show(request: Request) -> Response:
        return Response(content, headers=HEADERS, media_type=kind)

    return show

"""The application: which path is answered by what."""

from http import HTTPStatus

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from model.serve.door import Door
from model.serve.house import House
from model.serve.page.files import make_page
from model.serve.page.trace import Traces
from model.serve.texts.chat_completions import read_chat
from model.serve.texts.completions import read_completions
from model.serve.texts.endpoint import Endpoint
from model.serve.texts.responses import read_response
from model.serve.wire.answers import make_json
from model.serve.wire.errors import ApiError


def make_app(house: House) -> ASGIApp:
    """The application behind its door."""
    general = General(house)
    routes = [
        Route("/health", general.show_health),
        Route("/metrics", general.show_metrics),
        Route("/v1/models", general.list_models),
        Route("/v1/models/{id:path}", general.show_model),
    ]
    for path, read in (
        ("/v1/completions", read_completions),
        ("/v1/chat/completions", read_chat),
        ("/v1/responses", read_response),
    ):
        routes.append(Route(path, Endpoint(house, read).answer, methods=["POST"]))
    routes += make_page()
    if house.trace is not None:
        routes.append(Route("/v1/trace", Traces(house).answer, methods=["POST"]))
    limits = house.limits
    # As browsers tell them.
    origins = [origin.lower().rstrip("/") for origin in limits.allow_origin]
    app = Starlette(
        routes=routes,
        exception_handlers={
            ApiError: answer_error,
            HTTPException: answer_http_error,
            Exception: answer_unexpected,
        },
    )
    app.router.redirect_slashes = False
    door = Door(
        app,
        house.metrics,
        limits.api_key,
        (limits.host, *limits.allow_host),
        origins,
        [route.path for route in routes],
        limits.max_seconds,
    )
    if not origins:
        return door
    return CORSMiddleware(
        door,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=["Authorization", "Content-Type"],
    )


class General:
    """What is asked about the server itself."""

    def __init__(self, house: House) -> None:
        self.house = house

    async def show_health(self, request: Request) -> Response:
        """200 while texts are written, 503 once the server is to end or a model has failed."""
        is_ready = all(served.batcher.is_ready for served in self.house.served)
        health = {
            "status": "ok" if is_ready else "stopping",
            "models": [served.id for served in self.house.served],
            "running": sum(served.batcher.num_running for served in self.house.served),
            "waiting": sum(served.batcher.num_waiting for served in self.house.served),
        }
        return make_json(health, 200 if is_ready else 503)

    async def show_metrics(self, request: Request) -> Response:
        """Counts for Prometheus."""
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return Response(self.house.metrics.show(), media_type=kind)

    async def list_models(self, request: Request) -> Response:
        """The models that requests may name, and whether /v1/trace answers."""
        models = [served.describe() for served in self.house.served]
        traces = self.house.trace is not None
        return make_json({"object": "list", "data": models, "traces": traces})

    async def show_model(self, request: Request) -> Response:
        """One of them."""
        return make_json(self.house.find_model(request.path_params["id"]).describe())


async def answer_error(request: Request, error: Exception) -> Response:
    """An error that was meant for the client."""
    assert isinstance(error, ApiError)
    return error.answer()


async def answer_http_error(request: Request, error: Exception) -> Response:
    """A path or a method that is not there."""
    assert isinstance(error, HTTPException)
    told = f"{request.method} {request.url.path[:100]}: {error.detail}"
    code = HTTPStatus(error.status_code).name.lower()
    return ApiError(error.status_code, told, code, headers=error.headers).answer()


async def answer_unexpected(request: Request, error: Exception) -> Response:
    """A fault of ours; the client is not told which."""
    return ApiError(500, "an unexpected error of the server", "internal_error").answer()

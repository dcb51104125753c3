"""An error as OpenAI's API tells it: a status, and an object with message, type, param and code."""

from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from model.serve.wire.answers import make_json

# An error that quotes what it met may be as long as that.
MAX_CHARS = 1000
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


class ApiError(Exception):
    """What is answered instead of a text; `param` is the field that is wrong, if it is one."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON object of the answer."""
        return {
            "error": {
                "message": self.message[:MAX_CHARS],
                "type": TYPES.get(self.status, "invalid_request_error"),
                "param": self.param,
                "code": self.code,
            }
        }

    def answer(self) -> Response:
        """The answer itself."""
        return make_json(self.body(), self.status, self.headers)


def overloaded(message: str, seconds: int) -> ApiError:
    """A 429: there is no room now; there may be in so many seconds."""
    told = f"{message}; ask again in {seconds} s"
    return ApiError(429, told, "server_overloaded", headers={"Retry-After": str(seconds)})


def refuse(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """A 400: what the client sent is wrong, and sending it again would not help."""
    return ApiError(400, message, code, param)

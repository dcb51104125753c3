"""A request's body: read in time, and no more of it than is allowed."""

import asyncio

from starlette.requests import Request

from model.serve.wire.errors import ApiError
from model.serve.wire.fields import show

BODY_SECONDS = 60


async def read_body(request: Request, most: int) -> bytes:
    """The body, which must be JSON; 413 as soon as it is known to have more than `most` bytes."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(
            415,
            f"the content type is {show(kind)}; expected application/json",
            "unsupported_media_type",
        )
    told = request.headers.get("content-length", "0")
    chunks, size = list[bytes](), int(told) if told.isdecimal() else 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            if size <= most:
                size = 0
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > most:
                        break
                    chunks.append(chunk)
    except TimeoutError:
        raise ApiError(
            408, f"the body did not arrive within {BODY_SECONDS} s", "request_timeout"
        ) from None
    if size > most:
        raise ApiError(
            413,
            f"the body has more than {most:,} bytes, the most that this server takes",
            "request_too_large",
            headers={"Connection": "close"},
        )
    return b"".join(chunks)

"""What the pack's pages ask the server: how long a prompt is, and what is there. HTTP alone; others answer."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from aiohttp import web
from aiohttp.client_exceptions import ClientError
from aiohttp.http_exceptions import HttpProcessingError

from ..models.errors import UnreadableText
from . import meter, report

BODY_LIMIT = 64 << 10  # bytes
TEXT_LIMIT = 20_000  # characters
BODY_SECONDS = 30  # for all of it to arrive
# name → whether it may be null, and be left out.
FIELDS = {"text": False, "llm_text": True, "encoder": True, "adapter": True}
# A thread each, off the event loop: one request at a time, since a tokenizer is not for several, and none of the
# host's own threads, which a slow disk must not take.
COUNTING = ThreadPoolExecutor(1, "llm4gen-tokens")
LOOKING = ThreadPoolExecutor(1, "llm4gen-report")

Handler = Callable[[web.Request], Awaitable[web.Response]]


class Refused(Exception):
    """A request that gets no answer. status: HTTP's."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


def register() -> None:
    """Adds the routes to the host's server, if one is being started."""
    server = sys.modules.get("server")  # who starts one has imported it; to import it brings half of the host
    instance = getattr(getattr(server, "PromptServer", None), "instance", None)
    if instance is not None:
        # All methods, since the host has its own pages behind whatever is not taken.
        instance.routes.route("*", "/llm4gen/tokens")(answering(tokens, "POST"))
        instance.routes.route("*", "/llm4gen/report")(answering(inventory, "GET", "HEAD"))


def answering(handler: Handler, *methods: str) -> Handler:
    async def answer(request: web.Request) -> web.Response:
        try:
            if request.method not in methods:
                raise Refused(405, f"{request.method} is not known here; {' or '.join(methods)} is.")
            return await handler(request)
        except Refused as refused:
            allowed = {"Allow": ", ".join(methods)} if refused.status == 405 else {}
            return web.json_response({"error": str(refused)}, status=refused.status, headers=allowed)

    return answer


async def tokens(request: web.Request) -> web.Response:
    asked = checked(await body_of(request))
    try:
        counted = await asyncio.get_running_loop().run_in_executor(COUNTING, lambda: meter.count(**asked))
    except UnreadableText as error:  # no fault of the request's: half a syntax, while it is typed
        counted = {"note": str(error)}
    return web.json_response(counted)


async def inventory(request: web.Request) -> web.Response:
    return web.json_response(await asyncio.get_running_loop().run_in_executor(LOOKING, report.report))


async def body_of(request: web.Request) -> bytes:
    """Raises: Refused."""
    if request.content_type != "application/json" or "Content-Encoding" in request.headers:
        raise Refused(415, "The body must be JSON (Content-Type: application/json), and not compressed.")
    try:
        return await asyncio.wait_for(bounded(request), BODY_SECONDS)
    except (
        asyncio.TimeoutError,
        HttpProcessingError,
        ClientError,
        ConnectionError,
        web.RequestPayloadError,
    ) as error:
        raise Refused(400, "The body did not arrive in one piece.") from error


async def bounded(request: web.Request) -> bytes:
    """Raises: Refused."""
    body = bytearray()
    if (request.content_length or 0) <= BODY_LIMIT:
        async for chunk in request.content.iter_any():
            body += chunk
            if len(body) > BODY_LIMIT:
                break
        else:
            return bytes(body)
    raise Refused(413, f"The body is longer than {BODY_LIMIT} bytes.")


def checked(body: bytes) -> dict[str, str | None]:
    """Raises: Refused."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "The body is no JSON.") from error
    if not isinstance(asked, dict) or "text" not in asked or asked.keys() - FIELDS.keys():
        raise Refused(400, f"An object with {', '.join(FIELDS)} is wanted, and nothing else in it.")
    asked = {name: asked.get(name) for name in FIELDS}
    for name, value in asked.items():
        if not isinstance(value, str) and not (value is None and FIELDS[name]):
            raise Refused(400, f"{name} must be a string{' or null' if FIELDS[name] else ''}.")
        if value and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise Refused(400, f"{name} holds half a character (a lone surrogate).")
    if max(len(asked["text"]), len(asked["llm_text"] or "")) > TEXT_LIMIT:
        raise Refused(413, f"A text is longer than {TEXT_LIMIT} characters.")
    return asked

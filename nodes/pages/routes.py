"""The HTTP routes of the front end, under `/llm4gen/`: tokens, report, checkpoint. Only HTTP is handled here."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiohttp import web
from aiohttp.client_exceptions import ClientError
from aiohttp.http_exceptions import HttpProcessingError

from ...models.errors import UnreadableText
from ..server import running_server
from . import checkpoints, inventory, meter

BODY_LIMIT = 64 << 10  # bytes
TEXT_LIMIT = 20_000  # characters
BODY_SECONDS = 30  # for the whole body to arrive
# Of each question: name → whether the field may be null or left out.
TOKENS = {"text": False, "llm_text": True, "encoder": True, "adapter": True}
CHECKPOINT = {"checkpoint": False}
TEXTS = ("text", "llm_text")  # the others are names of files, which may hold bytes that are no letters
# A worker thread for tokenizers, which are not thread-safe, and one for files: a slow disk must not block ComfyUI's.
TOKENS_THREAD = ThreadPoolExecutor(1, "llm4gen-tokens")
FILES_THREAD = ThreadPoolExecutor(1, "llm4gen-files")

Handler = Callable[[web.Request], Awaitable[web.Response]]


class Refused(Exception):
    """A request that is answered with an error. status: the HTTP status code."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


def register() -> None:
    """Adds the routes to ComfyUI's server, if one is being started."""
    server = running_server()
    if server is not None:
        # All methods: ComfyUI would answer the others with the page of its front end.
        server.routes.route("*", "/llm4gen/tokens")(answering(tokens, "POST"))
        server.routes.route("*", "/llm4gen/report")(answering(report, "GET", "HEAD"))
        server.routes.route("*", "/llm4gen/checkpoint")(answering(checkpoint, "POST"))


def answering(handler: Handler, *methods: str) -> Handler:
    """A handler that allows only these methods, and answers `Refused` as JSON."""

    async def answer(request: web.Request) -> web.Response:
        try:
            if request.method not in methods:
                raise Refused(405, f"{request.method} is not allowed here; use {' or '.join(methods)}.")
            return await handler(request)
        except Refused as refused:
            allowed = {"Allow": ", ".join(methods)} if refused.status == 405 else {}
            return web.json_response({"error": str(refused)}, status=refused.status, headers=allowed)

    return answer


async def tokens(request: web.Request) -> web.Response:
    """Counts the tokens of a prompt. See `meter.count`."""
    question = parse(await read_body(request), TOKENS)
    try:
        loop = asyncio.get_running_loop()
        answer = await loop.run_in_executor(TOKENS_THREAD, lambda: meter.count(**question))
    except UnreadableText as error:  # not an error of the request: the user is in the middle of typing
        answer = {"note": str(error)}
    return web.json_response(answer)


async def report(request: web.Request) -> web.Response:
    """Lists the files in the model folders. See `inventory.inventory`."""
    loop = asyncio.get_running_loop()
    return web.json_response(await loop.run_in_executor(FILES_THREAD, inventory.inventory))


async def checkpoint(request: web.Request) -> web.Response:
    """Tells the kind of a checkpoint. See `checkpoints.kind_of`."""
    question = parse(await read_body(request), CHECKPOINT)
    loop = asyncio.get_running_loop()
    answer = await loop.run_in_executor(FILES_THREAD, lambda: checkpoints.kind_of(**question))
    return web.json_response(answer)


async def read_body(request: web.Request) -> bytes:
    """Raises: Refused."""
    if request.content_type != "application/json" or "Content-Encoding" in request.headers:
        raise Refused(415, "The body must be JSON (Content-Type: application/json), and not compressed.")
    try:
        return await asyncio.wait_for(read_bounded(request), BODY_SECONDS)
    except (
        asyncio.TimeoutError,
        HttpProcessingError,
        ClientError,
        ConnectionError,
        web.RequestPayloadError,
    ) as error:
        raise Refused(400, "The body did not arrive in one piece.") from error


async def read_bounded(request: web.Request) -> bytes:
    """Reads at most BODY_LIMIT bytes. Raises: Refused if the body is longer."""
    body = bytearray()
    if (request.content_length or 0) <= BODY_LIMIT:
        async for chunk in request.content.iter_any():
            body += chunk
            if len(body) > BODY_LIMIT:
                break
        else:
            return bytes(body)
    raise Refused(413, f"The body is longer than {BODY_LIMIT} bytes.")


def parse(body: bytes, fields: dict[str, bool]) -> dict[str, Any]:
    """A question with all of its fields. fields: name → whether it may be null or left out. Raises: Refused."""
    try:
        question = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "The body is not JSON.") from error
    needed = {name for name, is_optional in fields.items() if not is_optional}
    if not isinstance(question, dict) or not needed <= question.keys() <= fields.keys():
        raise Refused(400, f"The body must be an object with {', '.join(fields)}, and nothing else in it.")
    question = {name: question.get(name) for name in fields}
    for name, value in question.items():
        if not isinstance(value, str) and not (value is None and fields[name]):
            raise Refused(400, f"{name} must be a string{' or null' if fields[name] else ''}.")
        if value and name in TEXTS and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise Refused(400, f"{name} holds half a character (a lone surrogate).")
    if max(len(value or "") for value in question.values()) > TEXT_LIMIT:
        raise Refused(413, f"A text is longer than {TEXT_LIMIT} characters.")
    return question

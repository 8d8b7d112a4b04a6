"""A small client for ComfyUI's HTTP and websocket API. Needs aiohttp, which ComfyUI's Python has."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import uuid
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

Prompt = dict[str, dict[str, Any]]
Outputs = dict[str, dict[str, Any]]
OnEvent = Callable[[str, dict[str, Any]], None]
T = TypeVar("T")


class ValidationError(RuntimeError):
    """The server refused a prompt before running it (HTTP 400).

    body:        the JSON of its answer.
    node_errors: node id → the errors that the server found in the inputs of that node.
    """

    def __init__(self, body: dict[str, Any]) -> None:
        self.body = body
        self.node_errors: dict[str, Any] = body.get("node_errors") or {}
        error = body.get("error") or {}
        lines = [" ".join(filter(None, (error.get("message"), error.get("details"))))]
        for node, found in self.node_errors.items():
            where = f"node {node} ({found.get('class_type')})"
            lines += [f"{where}: {e['message']}: {e['details']}" for e in found.get("errors", [])]
        super().__init__("\n".join(lines))


class ExecutionError(RuntimeError):
    """A node raised an exception while the prompt ran. The attributes hold what the server reports about it."""

    def __init__(self, event: dict[str, Any]) -> None:
        self.node_id: str = str(event.get("node_id"))
        self.node_type: str = str(event.get("node_type"))
        self.exception_type: str = str(event.get("exception_type"))
        self.exception_message: str = str(event.get("exception_message", "")).strip()
        self.traceback: str = "".join(event.get("traceback") or [])
        where = f"node {self.node_id} ({self.node_type})"
        super().__init__(f"{where} raised {self.exception_type}: {self.exception_message}")


class Interrupted(RuntimeError):
    """The prompt was cancelled while it ran."""


class Client:
    """Sends requests to one server. The methods block, and may be called from any thread."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def get(self, path: str) -> Any:
        """Sends a GET request, e.g. for `/object_info`, and returns the JSON of the answer."""
        return _blocking(self._json("GET", path))

    def post(self, path: str, data: Any = None) -> Any:
        """Posts JSON and returns the JSON of the answer, or None if the answer is empty."""
        return _blocking(self._json("POST", path, data))

    def object_info(self) -> dict[str, dict[str, Any]]:
        """Node type → its inputs and outputs, for all nodes that the server offers."""
        return self.get("/object_info")

    def interrupt(self) -> None:
        """Cancels the running prompt, as the front end's Cancel button does."""
        self.post("/interrupt")

    def run(self, prompt: Prompt, on_event: OnEvent | None = None, timeout: float = 1800) -> Outputs:
        """Queues a prompt, waits until it has run, and returns node id → UI outputs, those of cached nodes included.

        timeout: seconds.
        Raises: ValidationError, ExecutionError, Interrupted, TimeoutError; ConnectionError if the server does not
        answer or ends.
        """
        return _blocking(asyncio.wait_for(self._run(prompt, on_event or _ignore), timeout))

    async def _run(self, prompt: Prompt, on_event: OnEvent) -> Outputs:
        client_id = uuid.uuid4().hex
        async with aiohttp.ClientSession() as session:
            try:
                # The websocket is opened before the prompt is sent, so that no event of a short prompt is missed.
                async with session.ws_connect(
                    f"{self.url}/ws?clientId={client_id}", max_msg_size=0
                ) as socket:
                    prompt_id = await self._queue(session, prompt, client_id)
                    await _follow(socket, prompt_id, on_event)
                return await self._outputs(session, prompt_id)
            except aiohttp.ClientConnectionError as error:
                raise ConnectionError(f"the server at {self.url} does not answer: {error}") from error

    async def _queue(self, session: aiohttp.ClientSession, prompt: Prompt, client_id: str) -> str:
        """Returns the prompt's id. Raises: ValidationError."""
        body = {"prompt": prompt, "client_id": client_id}
        async with session.post(f"{self.url}/prompt", json=body) as answer:
            if answer.status == 400:
                raise ValidationError(await answer.json())
            answer.raise_for_status()
            return (await answer.json())["prompt_id"]

    async def _outputs(self, session: aiohttp.ClientSession, prompt_id: str) -> Outputs:
        """Reads a prompt's outputs from the history, where the server writes them a moment after its last event."""
        while True:
            async with session.get(f"{self.url}/history/{prompt_id}") as answer:
                answer.raise_for_status()
                if prompt_id in (history := await answer.json()):
                    return history[prompt_id]["outputs"]
            await asyncio.sleep(0.05)

    async def _json(self, method: str, path: str, data: Any = None) -> Any:
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, self.url + path, json=data) as answer,
        ):
            answer.raise_for_status()
            body = await answer.read()
            return json.loads(body) if body else None


async def _follow(socket: aiohttp.ClientWebSocketResponse, prompt_id: str, on_event: OnEvent) -> None:
    """Reads the server's events until the prompt has ended. Raises: ExecutionError, Interrupted, ConnectionError."""
    async for message in socket:
        if message.type is not aiohttp.WSMsgType.TEXT:
            continue  # preview pictures are sent as binary messages
        event = json.loads(message.data)
        kind, data = event["type"], event.get("data") or {}
        if data.get("prompt_id") != prompt_id:
            continue
        on_event(kind, data)
        if kind == "execution_success":
            return
        if kind == "execution_error":
            raise ExecutionError(data)
        if kind == "execution_interrupted":
            raise Interrupted(f"cancelled in node {data.get('node_id')} ({data.get('node_type')})")
    raise ConnectionError("the server closed the connection while the prompt ran; see its log for the reason")


def image_paths(outputs: Outputs, output_folder: Path) -> list[Path]:
    """Returns the files that Save Image nodes wrote to the server's output folder."""
    images = [image for output in outputs.values() for image in output.get("images", [])]
    return [output_folder / i["subfolder"] / i["filename"] for i in images if i["type"] == "output"]


def _ignore(kind: str, data: dict[str, Any]) -> None:
    pass


def _blocking(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine and waits for it, even in a thread that already runs an event loop, as Playwright's does."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()

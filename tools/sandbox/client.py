"""A small client of ComfyUI's HTTP and websocket API. Runs under the host's Python, which has aiohttp."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import sys
import urllib.parse
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
    """The server refused a prompt before running it (HTTP 400); `body` is its JSON answer."""

    def __init__(self, body: dict[str, Any]) -> None:
        self.body = body
        self.node_errors: dict[str, Any] = body.get("node_errors") or {}
        error = body.get("error") or {}
        lines = [" ".join(filter(None, (error.get("message"), error.get("details"))))]
        for node, found in self.node_errors.items():
            for problem in found.get("errors", []):
                lines.append(
                    f"node {node} ({found.get('class_type')}): {problem['message']}: {problem['details']}"
                )
        super().__init__("\n".join(lines))


class ExecutionError(RuntimeError):
    """A node raised while the prompt ran; the fields are what the server says of it."""

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
    """Talks to one server. Its methods block; each may be called from any thread."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def get(self, path: str) -> Any:
        """The JSON behind a GET, e.g. `/object_info`."""
        return _blocking(self._json("GET", path))

    def post(self, path: str, data: Any = None) -> Any:
        """Posts JSON; the JSON answer, or None when the answer has no body."""
        return _blocking(self._json("POST", path, data))

    def object_info(self) -> dict[str, dict[str, Any]]:
        return self.get("/object_info")

    def interrupt(self) -> None:
        """Cancels what runs, as the front end's Cancel does."""
        self.post("/interrupt")

    def run(self, prompt: Prompt, on_event: OnEvent | None = None, timeout: float = 1800) -> Outputs:
        """Queues a prompt and waits until it has run; node id → its UI outputs, cached ones included.

        Raises ValidationError, ExecutionError, Interrupted, TimeoutError (seconds), or ConnectionError when the
        server goes away.
        """
        return _blocking(asyncio.wait_for(self._run(prompt, on_event or _ignore), timeout))

    async def _run(self, prompt: Prompt, on_event: OnEvent) -> Outputs:
        client_id = uuid.uuid4().hex
        async with aiohttp.ClientSession() as session:
            try:
                # The socket first: events of a short prompt would otherwise be gone before we listen.
                async with session.ws_connect(
                    f"{self.url}/ws?clientId={client_id}", max_msg_size=0
                ) as socket:
                    body = {"prompt": prompt, "client_id": client_id}
                    async with session.post(f"{self.url}/prompt", json=body) as answer:
                        if answer.status == 400:
                            raise ValidationError(await answer.json())
                        answer.raise_for_status()
                        prompt_id = (await answer.json())["prompt_id"]
                    await _follow(socket, prompt_id, on_event)
                while True:  # the server writes the history a moment after it says that it is done
                    async with session.get(f"{self.url}/history/{prompt_id}") as answer:
                        answer.raise_for_status()
                        if prompt_id in (history := await answer.json()):
                            return history[prompt_id]["outputs"]
                    await asyncio.sleep(0.05)
            except aiohttp.ClientConnectionError as error:
                raise ConnectionError(f"the server at {self.url} does not answer: {error}") from error

    async def _json(self, method: str, path: str, data: Any = None) -> Any:
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, self.url + path, json=data) as answer,
        ):
            answer.raise_for_status()
            body = await answer.read()
            return json.loads(body) if body else None


async def _follow(socket: aiohttp.ClientWebSocketResponse, prompt_id: str, on_event: OnEvent) -> None:
    """Reads the server's events until the prompt has ended."""
    async for message in socket:
        if message.type is not aiohttp.WSMsgType.TEXT:
            continue  # previews come as binary
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
    raise ConnectionError("the server closed the connection while the prompt ran; its log says why")


def image_paths(outputs: Outputs, output_folder: Path) -> list[Path]:
    """Where the pictures of SaveImage nodes lie, given the server's output folder."""
    images = [image for output in outputs.values() for image in output.get("images", [])]
    return [output_folder / i["subfolder"] / i["filename"] for i in images if i["type"] == "output"]


def view_url(url: str, image: dict[str, str]) -> str:
    """The address of a picture among a node's outputs."""
    return f"{url}/view?{urllib.parse.urlencode(image)}"


class TextProgress:
    """Shows a running prompt as lines of text: each node's title, and a bar for nodes that count steps."""

    WIDTH = 30

    def __init__(self, prompt: Prompt) -> None:
        self.titles = {node: entry.get("_meta", {}).get("title", node) for node, entry in prompt.items()}
        self.live = sys.stdout.isatty()
        self.open_bar = False

    def __call__(self, kind: str, data: dict[str, Any]) -> None:
        if kind == "executing" and data.get("node") is not None:
            self._end_bar()
            print(f"  {self.titles.get(str(data['node']), data['node'])}", flush=True)
        elif kind == "progress" and data.get("max", 0) > 1:
            self._bar(int(data["value"]), int(data["max"]))
        elif kind.startswith("execution_"):
            self._end_bar()

    def _bar(self, value: int, total: int) -> None:
        done = self.WIDTH * value // total
        line = f"    [{'#' * done}{'.' * (self.WIDTH - done)}] {value}/{total}"
        if self.live:
            print(f"\r{line}", end="", flush=True)
            self.open_bar = True
        elif value == total or value % max(1, total // 4) == 0:  # a log file gets a few lines, not all
            print(line, flush=True)

    def _end_bar(self) -> None:
        if self.open_bar:
            print(flush=True)
        self.open_bar = False


def _ignore(kind: str, data: dict[str, Any]) -> None:
    pass


def _blocking(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to its end, also where the calling thread has an event loop running (Playwright's)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()

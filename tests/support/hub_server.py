"""A local server with the part of the Hugging Face Hub's HTTP API that the library `huggingface_hub` downloads with.

As on the hub, large files come from another host name than the API's answers, and that host refuses requests with a
token. The server counts the bytes that it sends, and can break off or stall an answer. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CHUNK_BYTES = 1 << 16
API = re.compile(r"/api/models/([^/?]+/[^/?]+)(?:/revision/([^/?]+))?(?:\?.*)?")
RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
ELSEWHERE = re.compile(r"/elsewhere/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class Repository:
    """A repository at one commit.

    files:   path → content.
    licence: the licence that its card states; None if it has no card.
    status:  the HTTP error that answers all requests; None if they are served.
    token:   the token without which requests are answered with 401; None if none is needed.
    stated:  path → false values (`size`, `sha256`) that the hub states instead of the true ones.
    """

    files: dict[str, bytes]
    licence: str | None = None
    commit: str = "c" * 40
    status: int | None = None
    token: str | None = None
    stated: dict[str, dict[str, object]] = field(default_factory=dict)

    def entry(self, path: str) -> dict[str, object]:
        """Returns the size and the checksum that the hub states for a file."""
        data = self.files[path]
        return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} | self.stated.get(path, {})


class Hub:
    """A running server, and its state, which tests set and read.

    repositories: repositories by name, at their newest commit.
    older:        repositories by name, at an older commit.
    cut_at:       the byte of a file at which the next download loses its connection. This happens once.
    stall_at:     the byte of a file at which the next download stops until the client disconnects. This happens once.
    stalled:      is set when a download has stopped at `stall_at`.
    sent:         the path and the number of bytes of each download.
    api_requests: the repository and the revision of each API request.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.older: dict[str, Repository] = {}
        self.cut_at: int | None = None
        self.stall_at: int | None = None
        self.stalled = threading.Event()
        self.sent: list[tuple[str, int]] = []
        self.api_requests: list[tuple[str, str | None]] = []

    def bytes_sent(self, path: str) -> int:
        return sum(count for sent, count in self.sent if sent == path)

    def find(self, name: str, revision: str | None) -> Repository | None:
        """Returns the repository at a revision, or None if the hub does not have it."""
        newest = self.repositories.get(name)
        known = [repository for repository in (newest, self.older.get(name)) if repository]
        matching = [repository for repository in known if revision in (None, "main", repository.commit)]
        return matching[0] if matching else None

    def __enter__(self) -> Hub:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    """Answers one request. hub: the hub whose state decides how."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if match := API.fullmatch(self.path):
            self.answer_api(*match.groups())
        elif match := ELSEWHERE.fullmatch(self.path):
            self.answer_file(*match.groups())
        elif match := RESOLVE.fullmatch(self.path):
            self.answer_redirect(*match.groups())
        else:
            self.refuse(404)

    do_HEAD = do_GET

    def answer_api(self, name: str, revision: str | None) -> None:
        self.hub.api_requests.append((name, revision))
        repository = self.hub.find(name, revision)
        if status := self.error(repository):
            return self.refuse(
                status, "RevisionNotFound" if name in self.hub.repositories else "RepoNotFound"
            )
        siblings = []
        for path in repository.files:
            entry = repository.entry(path)
            lfs = {"sha256": entry["sha256"], "size": entry["size"], "pointerSize": 130}
            siblings.append({"rfilename": path, "size": entry["size"], "blobId": "b" * 40, "lfs": lfs})
        card = {"cardData": {"license": repository.licence}} if repository.licence else {}
        body = {"_id": "0", "id": name, "sha": repository.commit, "siblings": siblings, "tags": [], **card}
        self.send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def error(self, repository: Repository | None) -> int | None:
        """Returns the HTTP status that refuses a request, or None if the request is allowed."""
        if repository is None or repository.status:
            return repository.status if repository else 404
        is_authorised = self.headers.get("Authorization") == f"Bearer {repository.token}"
        return None if repository.token is None or is_authorised else 401

    def answer_redirect(self, name: str, revision: str, path: str) -> None:
        repository = self.hub.find(name, revision)
        if status := self.error(repository) or (404 if path not in repository.files else None):
            return self.refuse(status, "EntryNotFound")
        entry = repository.entry(path)
        headers = {
            "Location": f"http://localhost:{self.server.server_port}/elsewhere{self.path}",
            "X-Repo-Commit": repository.commit,
            "X-Linked-Etag": f'"{entry["sha256"]}"',
            "X-Linked-Size": str(entry["size"]),
            "Accept-Ranges": "bytes",
        }
        self.send(302, b"", headers)

    def answer_file(self, name: str, revision: str, path: str) -> None:
        if "Authorization" in self.headers:
            return self.refuse(400)
        repository = self.hub.find(name, revision)
        data = repository.files[path]
        byte_range = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start = int(byte_range[1]) if byte_range else 0
        end = int(byte_range[2]) + 1 if byte_range and byte_range[2] else len(data)
        headers = {"Accept-Ranges": "bytes", "Content-Length": str(end - start)}
        if byte_range:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        self.begin(206 if byte_range else 200, headers)
        if self.command == "GET":
            self.send_part(path, data, start, end)

    def send_part(self, path: str, data: bytes, start: int, end: int) -> None:
        """Sends data[start:end], or less of it if the connection is to break or stall before the end."""
        hub, position = self.hub, start
        cut, hub.cut_at = hub.cut_at, None
        stall, hub.stall_at = hub.stall_at, None
        stop = min([end, *(at for at in (cut, stall) if at is not None)])
        try:
            while position < stop:
                step = data[position : min(position + CHUNK_BYTES, stop)]
                self.wfile.write(step)
                position += len(step)
            if stall is not None:
                hub.stalled.set()
                self.rfile.read(1)  # waits until the client disconnects
        except ConnectionError:
            pass
        finally:
            hub.sent.append((path, position - start))
        self.close_connection = position < end or self.close_connection

    def refuse(self, status: int, code: str = "") -> None:
        self.send(status, b"{}", {"X-Error-Code": code} if code and status == 404 else {})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.begin(status, headers | {"Content-Length": str(len(body))})
        if self.command == "GET":
            self.wfile.write(body)

    def begin(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header, value)
        self.end_headers()

"""Two thousand malformed requests neither break nor hang the real server, nor make it larger or reveal its paths."""

import http.client
import json
import random
import re
import socket
from pathlib import Path

import pytest

from paths import ROOT
from sandbox.standins import ADAPTER, CHECKPOINT, ENCODER

SEED, REQUESTS = 20261125, 2000
ALLOWED = {200, 400, 403, 404, 405, 411, 413, 414, 415, 431}
GROWTH = 6 << 10  # kB, much less than the requests hold together
STATUS = Path("/proc/self/status")

NAMES = [
    ENCODER, ADAPTER, "", ".", "..", "../../secret.pth", "..\\..\\secret.pth", "/etc/passwd", "//etc/passwd",
    "C:\\Windows\\win.ini", "\\\\host\\share\\x.pth", "\\\\?\\C:\\x", "file:///etc/passwd", "~/x", "$HOME", "%2e%2e/x",
    "a\0b", "\n", "CON", "NUL.safetensors", "x" * 5000, "../" * 2000, "😀", "\u202e", "put it in ComfyUI/models",
]  # fmt: skip
WORDS = [
    "a", "cat", "(red:1.3)", "((", "))", ":", "\\(", "embedding:x,", "embedding:../../x", "embedding:/etc/passwd",
    "\0", "\n", "青い羊", "🐑", "e\u0301", "\u200b", "\ufffd", "\ufeff", "{text}", "{system}", "</s>", "<pad>",
    "<|endoftext|>", "1e999", "%s%n", "' OR 1=1", "<script>", "${jndi:x}", "x" * 300,
]  # fmt: skip
CONTENT_TYPES = [
    "application/json", "application/json; charset=utf-16", "application/json;", "APPLICATION/JSON", "text/plain",
    "json", "application/x-www-form-urlencoded", "multipart/form-data", "", "a/b/c", "\xff", "text/json",
]  # fmt: skip
METHODS = ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "get", "X" * 50]
PATHS = ["/llm4gen/tokens"] * 8 + ["/api/llm4gen/tokens", "/llm4gen/report", "/api/llm4gen/report"]
PATHS += ["/llm4gen/checkpoint"] * 3


class Sender:
    """Sends requests, on one connection for as long as the server keeps it open."""

    def __init__(self, port):
        self.port = port
        self.connection = None

    def send(self, data, complete):
        """Sends a request's bytes and returns the status and body of the response.

        complete: whether the request is. (None, b"") means that the server closed the connection, which the
        tests allow only for incomplete requests.
        """
        is_reused = self.connection is not None
        if not is_reused:
            self.connection = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        try:
            self.connection.sendall(data)
            if not complete:
                self.connection.shutdown(socket.SHUT_WR)
            response = http.client.HTTPResponse(
                self.connection, method=data.partition(b" ")[0].decode("latin-1")
            )
            response.begin()
            found = response.status, response.read()
            if response.will_close or not complete:
                self.close()
            return found
        except TimeoutError:
            raise
        except (OSError, http.client.HTTPException):  # the server closed the connection
            self.close()
            return self.send(data, complete) if is_reused and complete else (None, b"")

    def close(self):
        if self.connection:
            self.connection.close()
        self.connection = None


def value(rng, depth=0):
    """Any JSON value."""
    return rng.choice(
        [
            lambda: rng.choice([None, True, False, 0, -1, 1e308, 10**400, float("nan"), "", "\ud800", "a\0"]),
            lambda: rng.choice(NAMES),
            lambda: text(rng),
            lambda: [value(rng, depth + 1) for _ in range(rng.randrange(3))] if depth < 4 else [],
            lambda: {rng.choice(WORDS): value(rng, depth + 1)} if depth < 4 else {},
        ]
    )()


def text(rng):
    return rng.choice([" ", ", ", ""]).join(rng.choices(WORDS, k=rng.choice([0, 1, 5, 50, 300])))


def body(rng):
    """A request's body: a good one, JSON of another form, or any bytes."""
    fields = {
        "text": text(rng),
        "llm_text": None,
        "encoder": rng.choice(NAMES),
        "adapter": rng.choice(NAMES),
    }
    for _ in range(rng.randrange(3)):
        fields[rng.choice([*fields, "more", ""])] = value(rng)
    plain = json.dumps(fields, ensure_ascii=rng.random() < 0.7).encode("utf-8", "surrogatepass")
    broken = bytearray(plain)
    for _ in range(rng.randrange(1, 4)):
        broken[rng.randrange(len(broken))] = rng.randrange(256)
    return rng.choice(
        [
            plain,
            plain,
            bytes(broken),
            plain[: rng.randrange(len(plain))],
            json.dumps({"checkpoint": rng.choice(NAMES)}).encode("utf-8"),
            json.dumps(value(rng)).encode("utf-8"),
            rng.randbytes(rng.randrange(200)),
            rng.choice([b"[", b'{"text":', b'{"a":[']) * rng.choice([10, 10000]),
            b'{"text":' + b"9" * rng.choice([100, 60000]) + b"}",
            json.dumps(fields | {"text": "a" * rng.choice([19999, 20001, 65000])}).encode(),
            plain + b" " * rng.choice([1, 70000, 200000]),
        ]
    )


def request(rng):
    """A request's bytes, and whether the request is complete: then the server must answer it."""
    method, path = (
        ("POST", rng.choice(PATHS)) if rng.random() < 0.8 else (rng.choice(METHODS), rng.choice(PATHS))
    )
    path += rng.choice([*[""] * 12, "/", "?x=" + "y" * 3000, "/../tokens", "%00", "/%2e%2e/report"])
    content, content_type = body(rng), rng.choice(CONTENT_TYPES) if rng.random() < 0.3 else CONTENT_TYPES[0]
    headers, complete = {"Host": "127.0.0.1", "Content-Type": content_type}, True
    variant = rng.randrange(16)
    if variant == 0:
        headers["Content-Encoding"] = rng.choice(["gzip", "deflate", "br", "zstd", "x"])
    if variant in (1, 2):  # sent in chunks
        headers["Transfer-Encoding"], chunks = "chunked", [content[:100], content[100:]]
        sizes = [b"%x" % len(chunk) for chunk in chunks]
        if variant == 2:
            sizes[0], complete = rng.choice([b"zz", b"-1", b"", b"f" * 30, b"7fffffff"]), False
        content = b"".join(
            size + b"\r\n" + chunk + b"\r\n" for size, chunk in zip(sizes, chunks, strict=True) if chunk
        )
        content += b"0\r\n\r\n"
    elif variant == 3:  # cut short
        headers["Content-Length"], complete = str(len(content) + rng.randrange(1, 1000)), False
    elif variant == 4:  # not a number, or an impossible one
        headers["Content-Length"], complete = rng.choice(["-1", "x", "1e3", "9" * 30, "0x10", " "]), False
    elif variant == 5:  # the rest of the body is then read as a second, malformed request
        headers["Content-Length"], complete = str(len(content) // 2), False
    else:
        headers["Content-Length"] = str(len(content))
    if variant == 6:
        headers["Expect"] = "100-continue"
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + content, complete


def memory_of(server):
    """The server's own memory (RssAnon), in kB."""
    return int(re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{server.pid}/status").read_text())[1])


@pytest.fixture(scope="module")
def secrets(server, models, host):
    """Texts that no response may hold: the machine's folders, and parts of a traceback."""
    folders = [server.base, models, host.comfyui, ROOT, Path.home(), host.python.parent]
    folders += [folder.resolve() for folder in folders]
    return [str(folder).encode() for folder in folders if len(folder.parts) > 1] + [
        b"Traceback",
        b"site-packages",
    ]


def test_two_thousand_malformed_requests_do_no_harm(server, client, secrets):
    rng, sender, before, statuses = random.Random(SEED), Sender(server.port), None, {}
    said = len(server.log_text())  # by other tests, which may have wanted errors
    for number in range(REQUESTS):
        data, complete = request(rng)
        status, response = sender.send(data, complete)
        message = f"request {number}: {data[:300]!r} got {status} {response[:300]!r}"
        assert status in ALLOWED or (status is None and not complete), message
        assert not [secret for secret in secrets if secret in response], message
        statuses[status] = statuses.get(status, 0) + 1
        if number == REQUESTS // 2 and STATUS.exists():  # the largest texts and bodies have been sent by then
            before = memory_of(server)
    sender.close()
    assert min(statuses.get(status, 0) for status in (200, 400, 405, 413, 415)) >= 20, statuses
    assert before is None or memory_of(server) - before < GROWTH
    assert not re.search(r"llm4gen[/\\]nodes", server.log_text()[said:]), (
        "the log holds an error in the pack's code"
    )

    fields = {"text": "a cat", "llm_text": None, "encoder": ENCODER, "adapter": ADAPTER}
    counted = client.post("/llm4gen/tokens", fields)
    assert (counted["clip"]["tokens"], counted["llm"]["tokens"]) == (2, 5) and "note" not in counted
    assert client.get("/llm4gen/report")["pairs"]
    inputs = {"clip": ["1", 1], "llm": ["2", 0], "adapter": ["3", 0], "text": f"a cat after {SEED}"}
    prompt = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": CHECKPOINT}},
        "2": {"class_type": "LLM4GEN_LoadLLMEncoder", "inputs": {"encoder_name": ENCODER}},
        "3": {"class_type": "LLM4GEN_LoadCrossAdapter", "inputs": {"adapter_name": ADAPTER}},
        "4": {"class_type": "LLM4GEN_Conditioning", "inputs": inputs},
        "5": {"class_type": "PreviewAny", "inputs": {"source": ["4", 0]}},
    }
    assert client.run(prompt)["5"]


@pytest.mark.parametrize(
    "climb", ["..", "%2e%2e", "..%2f..", "..\\", "%5c..", "%252e%252e", "docs/../..", "/"]
)
@pytest.mark.parametrize("file", ["nodes/pages/routes.py", "pyproject.toml", "etc/passwd"])
def test_static_files_are_served_from_the_web_folder_only(climb, file, server, secrets):
    path = f"/extensions/llm4gen/{climb}/{file}"
    status, response = Sender(server.port).send(
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode(), True
    )
    assert status in (400, 403, 404) and b"import" not in response and b"requires-comfyui" not in response
    assert not [secret for secret in secrets if secret in response]


def test_files_of_the_web_folder_are_served(server):
    (page, *_) = sorted((ROOT / "web" / "docs").glob("*.md"))
    page_request = f"GET /extensions/llm4gen/docs/{page.name} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    assert Sender(server.port).send(page_request, True) == (200, page.read_bytes())

"""Two thousand malformed requests to the real server: none breaks it, hangs, makes it larger, or learns where it is."""

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
GROWTH = 6 << 10  # kB; much less than is sent
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
KINDS = [
    "application/json", "application/json; charset=utf-16", "application/json;", "APPLICATION/JSON", "text/plain",
    "json", "application/x-www-form-urlencoded", "multipart/form-data", "", "a/b/c", "\xff", "text/json",
]  # fmt: skip
METHODS = ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "get", "X" * 50]
PATHS = ["/llm4gen/tokens"] * 8 + ["/api/llm4gen/tokens", "/llm4gen/report", "/api/llm4gen/report"]


class Sender:
    """Makes requests, and keeps a connection for as long as the server does."""

    def __init__(self, port):
        self.port = port
        self.connection = None

    def send(self, data, whole):
        """The status and body that a request's bytes get. (None, b""): the server hung up, which only those that are
        not whole may meet."""
        kept = self.connection is not None
        if not kept:
            self.connection = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        try:
            self.connection.sendall(data)
            if not whole:
                self.connection.shutdown(socket.SHUT_WR)
            answer = http.client.HTTPResponse(
                self.connection, method=data.partition(b" ")[0].decode("latin-1")
            )
            answer.begin()
            found = answer.status, answer.read()
            if answer.will_close or not whole:
                self.close()
            return found
        except TimeoutError:
            raise
        except (OSError, http.client.HTTPException):  # it hung up
            self.close()
            return self.send(data, whole) if kept and whole else (None, b"")

    def close(self):
        if self.connection:
            self.connection.close()
        self.connection = None


def value(draw, depth=0):
    """Any JSON."""
    return draw.choice(
        [
            lambda: draw.choice(
                [None, True, False, 0, -1, 1e308, 10**400, float("nan"), "", "\ud800", "a\0"]
            ),
            lambda: draw.choice(NAMES),
            lambda: text(draw),
            lambda: [value(draw, depth + 1) for _ in range(draw.randrange(3))] if depth < 4 else [],
            lambda: {draw.choice(WORDS): value(draw, depth + 1)} if depth < 4 else {},
        ]
    )()


def text(draw):
    return draw.choice([" ", ", ", ""]).join(draw.choices(WORDS, k=draw.choice([0, 1, 5, 50, 300])))


def body(draw):
    """Bytes that may be JSON, and may be what is asked for."""
    asked = {
        "text": text(draw),
        "llm_text": None,
        "encoder": draw.choice(NAMES),
        "adapter": draw.choice(NAMES),
    }
    for _ in range(draw.randrange(3)):
        asked[draw.choice([*asked, "more", ""])] = value(draw)
    plain = json.dumps(asked, ensure_ascii=draw.random() < 0.7).encode("utf-8", "surrogatepass")
    broken = bytearray(plain)
    for _ in range(draw.randrange(1, 4)):
        broken[draw.randrange(len(broken))] = draw.randrange(256)
    return draw.choice(
        [
            plain,
            plain,
            bytes(broken),
            plain[: draw.randrange(len(plain))],
            json.dumps(value(draw)).encode("utf-8"),
            draw.randbytes(draw.randrange(200)),
            draw.choice([b"[", b'{"text":', b'{"a":[']) * draw.choice([10, 10000]),
            b'{"text":' + b"9" * draw.choice([100, 60000]) + b"}",
            json.dumps(asked | {"text": "a" * draw.choice([19999, 20001, 65000])}).encode(),
            plain + b" " * draw.choice([1, 70000, 200000]),
        ]
    )


def request(draw):
    """A request's bytes, and whether it is whole: such a one must be answered."""
    method, path = (
        ("POST", draw.choice(PATHS)) if draw.random() < 0.8 else (draw.choice(METHODS), draw.choice(PATHS))
    )
    path += draw.choice([*[""] * 12, "/", "?x=" + "y" * 3000, "/../tokens", "%00", "/%2e%2e/report"])
    content, kind = body(draw), draw.choice(KINDS) if draw.random() < 0.3 else KINDS[0]
    headers, whole = {"Host": "127.0.0.1", "Content-Type": kind}, True
    way = draw.randrange(16)
    if way == 0:
        headers["Content-Encoding"] = draw.choice(["gzip", "deflate", "br", "zstd", "x"])
    if way in (1, 2):  # in pieces
        headers["Transfer-Encoding"], pieces = "chunked", [content[:100], content[100:]]
        sizes = [b"%x" % len(piece) for piece in pieces]
        if way == 2:
            sizes[0], whole = draw.choice([b"zz", b"-1", b"", b"f" * 30, b"7fffffff"]), False
        content = b"".join(
            size + b"\r\n" + piece + b"\r\n" for size, piece in zip(sizes, pieces, strict=True) if piece
        )
        content += b"0\r\n\r\n"
    elif way == 3:  # cut short
        headers["Content-Length"], whole = str(len(content) + draw.randrange(1, 1000)), False
    elif way == 4:  # no number, or none that can be
        headers["Content-Length"], whole = draw.choice(["-1", "x", "1e3", "9" * 30, "0x10", " "]), False
    elif way == 5:  # more follows than was said, which is no request
        headers["Content-Length"], whole = str(len(content) // 2), False
    else:
        headers["Content-Length"] = str(len(content))
    if way == 6:
        headers["Expect"] = "100-continue"
    head = "".join(f"{name}: {said}\r\n" for name, said in headers.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + content, whole


def memory(server):
    """kB that the server has for itself."""
    return int(re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{server.pid}/status").read_text())[1])


@pytest.fixture(scope="module")
def secrets(server, models, host):
    """What of the machine no answer may hold."""
    folders = [server.base, models, host.comfyui, ROOT, Path.home(), host.python.parent]
    folders += [folder.resolve() for folder in folders]
    return [str(folder).encode() for folder in folders if len(folder.parts) > 1] + [
        b"Traceback",
        b"site-packages",
    ]


def test_two_thousand_malformed_requests(server, client, secrets):
    draw, sender, before, statuses = random.Random(SEED), Sender(server.port), None, {}
    for number in range(REQUESTS):
        data, whole = request(draw)
        status, answer = sender.send(data, whole)
        told = f"request {number}: {data[:300]!r} got {status} {answer[:300]!r}"
        assert status in ALLOWED or (status is None and not whole), told
        assert not [secret for secret in secrets if secret in answer], told
        statuses[status] = statuses.get(status, 0) + 1
        if number == REQUESTS // 4 and STATUS.exists():
            before = memory(server)
    sender.close()
    assert min(statuses.get(status, 0) for status in (200, 400, 405, 413, 415)) >= 20, statuses
    assert before is None or memory(server) - before < GROWTH
    assert not re.search(r"llm4gen[/\\]nodes", server.log_text()), "an error of ours was logged"

    asked = {"text": "a cat", "llm_text": None, "encoder": ENCODER, "adapter": ADAPTER}
    counted = client.post("/llm4gen/tokens", asked)
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
@pytest.mark.parametrize("file", ["nodes/routes.py", "pyproject.toml", "etc/passwd"])
def test_static_files_come_from_web_alone(climb, file, server, secrets):
    path = f"/extensions/llm4gen/{climb}/{file}"
    status, answer = Sender(server.port).send(
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode(), True
    )
    assert status in (400, 403, 404) and b"import" not in answer and b"requires-comfyui" not in answer
    assert not [secret for secret in secrets if secret in answer]


def test_what_lies_in_web_is_served(server):
    (page, *_) = sorted((ROOT / "web" / "docs").glob("*.md"))
    ask = f"GET /extensions/llm4gen/docs/{page.name} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    assert Sender(server.port).send(ask, True) == (200, page.read_bytes())

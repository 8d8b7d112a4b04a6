"""What the pack's pages ask the server: how long a prompt is in either half, and what is there."""

import asyncio
import http.client
import json
import re
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

import in_process
import tiny
from gguf_files import make, own_tokenizer, write_decoder, write_t5
from sandbox.standins import ADAPTER, ENCODER

JSON = {"Content-Type": "application/json"}
ASKED = {"text": "a cat", "llm_text": None, "encoder": None, "adapter": None}
PLAIN = [
    "",
    "a red cat",
    "a (red:1.3) cat \\(sitting\\), by the ((sea))",
    "line\n\tone ",
    *("word " * number for number in (74, 75, 76, 252, 253, 254, 255, 256, 300)),
    "(a red cat:1.2) [by] the sea, " * 20,
    "Ein Käfer auf dem Blatt " * 40,
    "x" * 3000,
]
TEXTS = [
    *PLAIN,
    "青い(羊:1.4)と茶色の花瓶" * 30,
    "🐑🏺👩‍👩‍👧" * 40,
    "embedding:routes-mark, a cat",
    "a cat, (embedding:routes-mark:1.2), " * 20,
    "embedding:not-there, a cat",
]


@pytest.fixture(scope="module")
def meter(started, put):
    from llm4gen.nodes.pages import meter  # noqa: PLC0415

    put("embeddings", "routes-mark.safetensors", {"emb_params": torch.zeros(5, 768)})
    return meter


@pytest.fixture(scope="module")
def inventory(started):
    from llm4gen.nodes.pages import inventory  # noqa: PLC0415

    return inventory


def squeezed(text):
    return re.sub(r"\s", "", text).casefold()


# Counting, beside the nodes' own tokenizing


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_clips_tokens_are_the_nodes(text, meter, clip, fused):
    chunks = clip.tokenize(text, True)["l"]
    counted = meter.count(text, None, ENCODER, ADAPTER)["clip"]
    assert (counted["tokens"], counted["limit"]) == (
        sum(word > 0 for chunk in chunks for *_, word in chunk),
        75,
    )
    assert len(fused.tokenize(text)["l"]) == 1
    assert bool(counted["cut"]) == (len(chunks) > 1)


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_the_llms_tokens_are_the_nodes(text, meter, fused, llm, adapter):
    counted = meter.count(text, None, ENCODER, ADAPTER)["llm"]
    (pairs,) = fused.tokenize(text)["llm4gen"]
    words = meter.weighted_text(text).text
    whole = llm.llm.tokenize(words, replace(adapter.recipe, tokens=8192))
    assert (counted["tokens"], counted["limit"]) == (len(whole.ids), 256)
    assert min(counted["tokens"], 256) == len(pairs)
    assert bool(counted["cut"]) == (llm.llm.tokenize(words, adapter.recipe).dropped > 0)


@pytest.mark.parametrize("text", PLAIN, ids=range(len(PLAIN)))
def test_what_is_cut_is_the_end_and_what_is_left_fits(text, meter):
    words = meter.weighted_text(text).text.rstrip()
    for half, counted in meter.count(text, None, None, None).items():
        cut = counted["cut"]
        assert words.endswith(cut)
        left = meter.count(words[: len(words) - len(cut)], None, None, None)[half]
        assert left["cut"] == "" and left["tokens"] <= counted["tokens"]
        if len(set(words.split())) == 1 and cut and half == "clip":  # a word is a token
            assert left["tokens"] == 75 or len(words) == 3000


def test_a_letter_of_several_tokens_is_never_cut_in_two(meter):
    for number in range(3):
        text = "a" * number + " " + "青い羊と茶色の花瓶" * 30
        cut = meter.count(text, None, None, None)["clip"]["cut"]
        assert cut and text.endswith(cut)


def test_vectors_that_are_cut_are_told_though_they_are_no_words(meter):
    counted = meter.count("word " * 74 + "embedding:routes-mark", None, None, None)["clip"]
    assert (counted["tokens"], counted["cut"]) == (79, "(embedding)")


def test_the_llm_may_be_given_other_words(meter):
    one, other = (meter.count(text, None, None, None) for text in ("a cat", "word " * 300))
    assert meter.count("a cat", "word " * 300, None, None) == {"clip": one["clip"], "llm": other["llm"]}


def word_tokenizer(folder, words):
    """A tokenizer with a piece for each word, and 64 in all."""
    pieces = {word: number for number, word in enumerate([*words, *map(str, range(64 - len(words)))])}
    tokenizer = Tokenizer(models.WordLevel(pieces, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind), encoding="utf-8")


def own_encoder(tmp_path, name, *words):
    """An encoder with a tokenizer of its own: its folder."""
    folder = tmp_path / "one" / "text_encoders" / name
    folder.mkdir()
    save_file(tiny.rankgen_tensors(tiny.t5_encoder(vocab_size=64)), folder / "t5.safetensors")
    word_tokenizer(folder, words)
    return folder


def test_an_encoders_own_tokenizer_counts_for_an_adapters_own_recipe(place, tmp_path, started, meter):
    own_encoder(tmp_path, "own", "a", "photorealistic", "cat", "<user>", "<assistant>")
    recipe = {"llm4gen": json.dumps({"template": "<user> {text} <assistant>", "tokens": 8, "heads": 4})}
    save_file(tiny.adapter_tensors(clip=768), tmp_path / "two" / "llm4gen" / "own.safetensors", recipe)
    names, text = ("own/t5.safetensors", "own.safetensors"), "a photorealistic cat a photorealistic cat"
    assert meter.count(text, None, *names)["llm"] == {"tokens": 8, "limit": 8, "cut": ""}
    llm = in_process.run(started.ours["LLM4GEN_LoadLLMEncoder"], encoder_name=names[0])
    adapter = in_process.run(started.ours["LLM4GEN_LoadCrossAdapter"], adapter_name=names[1])
    assert len(llm.llm.tokenize(text, adapter.recipe).ids) == 8
    longer = meter.count(f"{text} a (photorealistic:1.2) cat", None, *names)["llm"]
    assert longer == {"tokens": 11, "limit": 8, "cut": "photorealistic cat"}


def test_a_tokenizer_is_opened_once_until_its_files_change(place, tmp_path, meter, monkeypatch):
    own = own_encoder(tmp_path, "own", "cat")
    opened, open_one = [], meter.TOKENIZERS.read
    monkeypatch.setattr(meter.TOKENIZERS, "read", lambda path: opened.append(path) or open_one(path))
    for _ in range(3):
        assert meter.count("cat dog", None, "own/t5.safetensors", None)["llm"]["tokens"] == 3
    assert opened == [own / "t5.safetensors"]
    word_tokenizer(own, ["longer", "words", "here"])
    meter.count("cat dog", None, "own/t5.safetensors", None)
    assert opened == [own / "t5.safetensors"] * 2


def test_few_tokenizers_are_kept(place, tmp_path, meter):
    for number in range(meter.TOKENIZERS.limit + 2):
        own = own_encoder(tmp_path, f"own-{number}", "cat")
        meter.count("a cat", None, f"{own.name}/t5.safetensors", None)
        assert (
            own / "t5.safetensors" in meter.TOKENIZERS.entries
            and len(meter.TOKENIZERS.entries) <= meter.TOKENIZERS.limit
        )


@pytest.mark.parametrize(
    "name",
    [None, "gone.safetensors", "", "..", "../../secret", "/etc/passwd", "C:\\x", "\\\\host\\share", "a\0b"],
)
def test_a_name_that_is_not_listed_counts_as_published(name, place, tmp_path, meter):
    (tmp_path / "secret").write_bytes(b"x")
    assert meter.count("a cat", None, name, name) == meter.count("a cat", None, None, None)


def test_what_cannot_be_read_counts_as_published_and_is_told_without_a_path(place, tmp_path, meter):
    folder = tmp_path / "one" / "text_encoders" / "of its own"
    folder.mkdir()
    save_file(tiny.rankgen_tensors(tiny.t5_encoder()), folder / "t5.safetensors")
    (folder / "tokenizer.json").write_text("{", encoding="utf-8")
    (tmp_path / "one" / "llm4gen" / "cut.pth").write_bytes(b"PK")
    plain = meter.count("a cat", None, None, None)
    counted = meter.count("a cat", None, "of its own/t5.safetensors", "cut.pth")
    note = counted.pop("note")
    assert counted == plain
    assert "of its own cannot be read" in note and "cut.pth is refused" in note
    assert not re.search(r"pytest|tmp|one[/\\]", note)


HALF = ["embedding:", "a cat embedding: ", "(" * 2000 + "a" + ")" * 2000]  # of a syntax


@pytest.mark.parametrize("text", HALF, ids=["embedding", "words", "parentheses"])
def test_what_the_host_fails_at_is_told(text, meter, clip):
    from llm4gen.models.errors import UnreadableText  # noqa: PLC0415

    with pytest.raises((IndexError, RecursionError)):
        clip.tokenize(text)
    with pytest.raises(UnreadableText, match="parentheses and embeddings"):
        meter.count(text, None, None, None)


# What is there


@pytest.fixture
def mixture(place, tmp_path):
    """Of all kinds."""
    ours, theirs = tmp_path / "one" / "text_encoders", tmp_path / "one" / "llm4gen"
    save_file(tiny.rankgen_tensors(tiny.t5_encoder()), ours / "t5.safetensors")
    save_file(tiny.rankgen_tensors(tiny.t5_encoder(vocab_size=4000)), ours / "other-words.safetensors")
    save_file({"text_model.embeddings.weight": torch.zeros(4, 4)}, ours / "clip_l.safetensors")
    (ours / "cut.bin").write_bytes(b"PK")
    (ours / "cut.gguf").write_bytes(b"GGUF")
    write_t5(ours / "small.gguf", tiny.t5_encoder(d_model=64, d_kv=16, d_ff=128))
    save_file(tiny.adapter_tensors(clip=768, llm=32), theirs / "fits.safetensors")
    torch.save(tiny.adapter_tensors(clip=768, llm=2048), theirs / "wide.pth")
    deep = {"llm4gen": json.dumps({"layer": 4})}
    save_file(tiny.adapter_tensors(clip=768, llm=32), theirs / "deep.safetensors", deep)
    save_file(tiny.adapter_tensors(clip=768), theirs / "odd.safetensors", {"llm4gen": "{"})
    return place


def test_the_report_says_what_is_there_and_what_fits(mixture, tmp_path, inventory):
    told = inventory.inventory()
    json.dumps(told)
    encoders = {entry["name"]: entry for entry in told["encoders"]}
    sizes = {name: (one["kind"], one["width"], one["layers"], one["dtype"]) for name, one in encoders.items()}
    nothing = ("other", None, None, None)
    assert sizes == {
        "t5.safetensors": ("t5", 32, 3, "fp32"),
        "other-words.safetensors": ("t5", 32, 3, "fp32"),
        "small.gguf": ("t5", 64, 3, "F32"),
        "clip_l.safetensors": nothing,
        "cut.bin": nothing,
        "cut.gguf": nothing,
    }
    wrong = {name for name, one in encoders.items() if one["error"]}
    assert wrong == {"other-words.safetensors", "cut.bin", "cut.gguf"}
    assert [name for name, one in encoders.items() if one["reason"]] == ["clip_l.safetensors"]
    assert encoders["clip_l.safetensors"]["reason"].startswith(
        "clip_l.safetensors does not hold a T5 encoder"
    )
    assert "32100 tokens, but the encoder has 4000" in encoders["other-words.safetensors"]["error"]
    assert encoders["t5.safetensors"]["tokenizer"] == "ComfyUI's"

    adapters = {entry["name"]: entry for entry in told["adapters"]}
    assert {name: (one["clip_width"], one["llm_width"]) for name, one in adapters.items()} == {
        "fits.safetensors": (768, 32),
        "wide.pth": (768, 2048),
        "deep.safetensors": (768, 32),
        "odd.safetensors": (None, None),
    }
    assert (
        "is not JSON" in adapters["odd.safetensors"]["error"]
        and adapters["odd.safetensors"]["recipe"] is None
    )
    assert adapters["wide.pth"]["recipe"]["template"] == "pre {text}"

    fitting = {(pair["encoder"], pair["adapter"]) for pair in told["pairs"] if pair["fits"]}
    assert fitting == {
        ("t5.safetensors", "fits.safetensors"),
        ("other-words.safetensors", "fits.safetensors"),
    }
    assert len(told["pairs"]) == 3 * 3, "of what is known alone"
    assert told["advice"] == {key: mixture.ADVICE[key] for key in ("text_encoders", "llm4gen")}
    assert re.fullmatch(r"\d+\.\d+\.\d+", told["version"])


def test_the_report_names_no_folder_of_the_machine(mixture, tmp_path, inventory):
    from llm4gen.nodes.tokenizers import open_tokenizer  # noqa: PLC0415

    own = own_encoder(tmp_path, "of its own")
    (own / "tokenizer.json").write_text("{", encoding="utf-8")
    assert str(own) in open_tokenizer(own / "t5.safetensors").error
    told = json.dumps(inventory.inventory())
    assert "The tokenizer in of its own cannot be read" in told
    assert not re.search(r"pytest|/tmp|one[/\\]", told)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("The tokenizer in {0}/one/text_encoders/a b/c is", "The tokenizer in a b/c is"),
        ("OSError: '/home/somebody/x/config.json' is", "OSError: 'config.json' is"),
        (r"C:\Users\Somebody\x\model.bin is", "model.bin is"),
        (r"\\server\share\model.bin is", "model.bin is"),
        ("put it in ComfyUI/models/llm4gen, and/or 1 / 2", "put it in ComfyUI/models/llm4gen, and/or 1 / 2"),
    ],
)
def test_a_message_for_other_eyes_keeps_names_alone(said, told, place, tmp_path):
    assert place.without_folders(said.format(tmp_path)) == told


def test_a_file_is_looked_at_once_until_it_changes(mixture, tmp_path, inventory, monkeypatch):
    seen = []
    for memory in (inventory.ENCODERS, inventory.ADAPTERS):
        read = memory.read
        monkeypatch.setattr(memory, "read", lambda path, read=read: seen.append(path.name) or read(path))
    first = inventory.inventory()
    assert len(seen) == 10 and inventory.inventory() == first
    assert len(seen) == 10
    save_file(tiny.adapter_tensors(clip=768, llm=64), tmp_path / "one" / "llm4gen" / "fits.safetensors")
    inventory.inventory()
    assert seen[10:] == ["fits.safetensors"]


def test_a_large_file_without_a_header_is_not_read(place, tmp_path, inventory, monkeypatch):
    for folder in ("text_encoders", "llm4gen"):
        path = tmp_path / "one" / folder / "old.bin"
        torch.save(tiny.adapter_tensors(), path, _use_new_zipfile_serialization=False)
    assert "does not hold a T5 encoder" in inventory.encoders()["old.bin"].reason
    assert inventory.adapters()["old.bin"].llm_width == 32
    monkeypatch.setattr(inventory, "LEGACY_PICKLE_BYTES", 1000)
    inventory.ENCODERS.entries.clear()
    inventory.ADAPTERS.entries.clear()
    assert "which has no header" in inventory.encoders()["old.bin"].reason
    assert "tools/convert.py" in inventory.adapters()["old.bin"].error


# HTTP


@pytest.fixture
def send(server):
    def send(method, path, body=None, headers=JSON):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        read = answer.read()
        connection.close()
        return answer.status, json.loads(read) if read else None

    return send


@pytest.mark.floor
@pytest.mark.parametrize("prefix", ["", "/api"])
def test_the_server_counts_and_reports(prefix, send):
    status, counted = send("POST", f"{prefix}/llm4gen/tokens", json.dumps(ASKED | {"text": "cat " * 100}))
    assert status == 200 and counted.keys() == {"clip", "llm"}
    assert (counted["clip"]["tokens"], counted["clip"]["cut"]) == (100, ("cat " * 25).strip())
    assert counted["llm"]["limit"] == 256 and counted["llm"]["cut"] == ""
    status, told = send("GET", f"{prefix}/llm4gen/report")
    assert status == 200 and told.keys() == {"encoders", "adapters", "pairs", "advice", "version"}
    (fitting,) = [pair for pair in told["pairs"] if pair["encoder"] == ENCODER and pair["adapter"] == ADAPTER]
    assert fitting["fits"] is True


@pytest.fixture
def own_gguf(models):
    """Among the server's encoders, one with a tokenizer inside, which has a piece for `cat` and none for `dog`."""
    path = models / "text_encoders" / "routes-own.gguf"
    path.parent.mkdir(exist_ok=True)
    header = own_tokenizer("cat")
    size = len(header["tokenizer.ggml.tokens"])
    write_decoder(path, make("Qwen2", vocab_size=size), **header)
    yield path
    path.unlink()


@pytest.mark.parametrize(("text", "total"), [("cat dog", 3 + 2 + 4), ("cat dog " * 60, 3 + 60 * 6 + 1)])
def test_the_server_counts_with_a_gguf_files_own_tokenizer(text, total, own_gguf, send):
    inside = AutoTokenizer.from_pretrained(own_gguf.parent, gguf_file=own_gguf.name, local_files_only=True)
    ids = inside(f"pre {text}")["input_ids"]
    assert len(ids) == total, "three letters, then a space before each word, and the last"
    asked = json.dumps(ASKED | {"text": text, "encoder": own_gguf.name, "adapter": ADAPTER})
    status, counted = send("POST", "/llm4gen/tokens", asked)
    assert status == 200 and "note" not in counted
    cut = inside.decode(ids[256:]).strip()
    assert counted["llm"] == {"tokens": len(ids), "limit": 256, "cut": cut}


def test_without_a_model_it_counts_too(empty_server):
    connection = http.client.HTTPConnection("127.0.0.1", empty_server.port, timeout=60)
    connection.request("POST", "/llm4gen/tokens", json.dumps(ASKED), JSON)
    assert json.load(connection.getresponse())["clip"]["tokens"] == 2
    assert empty_server.get("/llm4gen/report")["encoders"] == []


BAD = {
    400: [
        "", "{", "[]", "1", "null", '"a"', "\0", b"\xff\xfe", "[" * 60000, "9" * 5000, "{}",
        *(json.dumps(ASKED | wrong) for wrong in (
            {"text": None}, {"text": 1}, {"text": ["a"]}, {"text": "\ud800"}, {"llm_text": 1}, {"llm_text": "\udfff a"},
            {"encoder": 1}, {"encoder": ["x"]}, {"adapter": {}}, {"adapter": True}, {"more": 1},
        )),
    ],
    413: [json.dumps(ASKED | {"text": "a" * 20001}), json.dumps(ASKED | {"llm_text": "a" * 20001}), " " * 65537],
}  # fmt: skip


@pytest.mark.parametrize(
    ("status", "body"),
    [(status, body) for status, bodies in BAD.items() for body in bodies],
    ids=lambda it: repr(it)[:40],
)
def test_a_body_that_is_not_as_agreed_is_refused(status, body, send):
    found, answer = send("POST", "/llm4gen/tokens", body)
    assert found == status and list(answer) == ["error"] and answer["error"]


@pytest.mark.parametrize("name", ["text", "llm_text"])
@pytest.mark.parametrize("text", HALF, ids=["embedding", "words", "parentheses"])
def test_half_a_syntax_is_no_fault_of_the_request(text, name, send):
    """Who types is not at the end yet, and a browser shows every refusal in red."""
    status, answer = send("POST", "/llm4gen/tokens", json.dumps(ASKED | {name: text}))
    counted = name == "llm_text" and "(" not in text  # embeddings are CLIP's alone
    assert status == 200 and set(answer) == ({"clip", "llm"} if counted else {"note"})


def test_what_is_just_within_the_limits_is_not(send):
    body = json.dumps(ASKED | {"text": "a" * 20000, "llm_text": "é" * 5000})
    assert send("POST", "/llm4gen/tokens", body + " " * (65536 - len(body)))[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        *({"Content-Type": kind} for kind in ("text/plain", "multipart/form-data; boundary=x", "\xe9", ";")),
        JSON | {"Content-Encoding": "gzip"},
    ],
)
def test_a_body_that_is_no_json_by_its_headers_is_refused(headers, send):
    status, answer = send("POST", "/llm4gen/tokens", json.dumps(ASKED), headers)
    if headers.get("Content-Encoding"):
        assert status in (400, 415)  # what is not compressed is refused before it is ours
    else:
        assert status == 415 and list(answer) == ["error"]


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "TRACE"])
@pytest.mark.parametrize("path", ["/llm4gen/tokens", "/api/llm4gen/report"])
def test_other_methods_are_refused(method, path, send):
    status, answer = send(method, path, None if method in ("GET", "HEAD") else json.dumps(ASKED))
    if path.endswith("report") and method in ("GET", "HEAD"):
        assert status == 200
    else:
        assert status == 405 and (method == "HEAD" or list(answer) == ["error"])


def test_the_server_goes_on_while_something_is_counted(started, meter, monkeypatch):
    """Counting that takes for ever holds up neither the report nor anything else."""
    from llm4gen.nodes.pages import routes  # noqa: PLC0415

    begun, go_on = threading.Event(), threading.Event()

    def count(**asked):
        begun.set()
        assert go_on.wait(20)
        return {"asked": asked}

    monkeypatch.setattr(meter, "count", count)
    host = SimpleNamespace(routes=web.RouteTableDef())
    for server in (None, SimpleNamespace(), SimpleNamespace(PromptServer=SimpleNamespace())):
        monkeypatch.setitem(sys.modules, "server", server)
        routes.register()
        assert not list(host.routes), "nobody starts one"
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=host)))
    routes.register()

    async def ask():
        app = web.Application()
        app.add_routes(host.routes)
        async with TestClient(TestServer(app)) as client:
            waiting = asyncio.create_task(client.post("/llm4gen/tokens", json=ASKED))
            assert await asyncio.to_thread(begun.wait, 20)
            try:
                assert (await client.get("/llm4gen/report")).status == 200
                assert (await client.post("/llm4gen/tokens", json=[])).status == 400
                assert not waiting.done()
            finally:
                go_on.set()
            assert (await (await waiting).json()) == {"asked": ASKED}

    asyncio.run(ask())

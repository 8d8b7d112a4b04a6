"""The server's routes for the pack's pages: a token counter for both halves, and a report of the model files."""

import asyncio
import http.client
import io
import json
import os
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
from llm4gen.models.checkpoints.checkpoint_kind import KINDS
from sandbox.standins import ADAPTER, ENCODER

JSON = {"Content-Type": "application/json"}
REQUEST = {"text": "a cat", "llm_text": None, "encoder": None, "adapter": None}
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


# Counting, compared with what the nodes' tokenizers count


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_the_count_for_clip_equals_the_nodes(text, meter, clip, fused):
    chunks = clip.tokenize(text, True)["l"]
    counted = meter.count(text, None, ENCODER, ADAPTER)["clip"]
    assert (counted["tokens"], counted["limit"]) == (
        sum(word > 0 for chunk in chunks for *_, word in chunk),
        75,
    )
    assert len(fused.tokenize(text)["l"]) == 1
    assert bool(counted["cut"]) == (len(chunks) > 1)


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_the_count_for_the_llm_equals_the_nodes(text, meter, fused, llm, adapter):
    counted = meter.count(text, None, ENCODER, ADAPTER)["llm"]
    (pairs,) = fused.tokenize(text)["llm4gen"]
    plain = meter.weighted_text(text).text
    uncut = llm.llm.tokenize(plain, replace(adapter.recipe, tokens=8192))
    assert (counted["tokens"], counted["limit"]) == (len(uncut.ids), 256)
    assert min(counted["tokens"], 256) == len(pairs)
    assert bool(counted["cut"]) == (llm.llm.tokenize(plain, adapter.recipe).dropped > 0)


@pytest.mark.parametrize("text", PLAIN, ids=range(len(PLAIN)))
def test_the_end_is_cut_and_the_rest_fits(text, meter):
    plain = meter.weighted_text(text).text.rstrip()
    for half, counted in meter.count(text, None, None, None).items():
        cut = counted["cut"]
        assert plain.endswith(cut)
        rest = meter.count(plain[: len(plain) - len(cut)], None, None, None)[half]
        assert rest["cut"] == "" and rest["tokens"] <= counted["tokens"]
        if len(set(plain.split())) == 1 and cut and half == "clip":  # each word is one token
            assert rest["tokens"] == 75 or len(plain) == 3000


def test_a_cut_never_divides_the_tokens_of_one_letter(meter):
    for number in range(3):
        text = "a" * number + " " + "青い羊と茶色の花瓶" * 30
        cut = meter.count(text, None, None, None)["clip"]["cut"]
        assert cut and text.endswith(cut)


def test_a_textual_inversion_that_is_cut_is_reported_by_a_label(meter):
    counted = meter.count("word " * 74 + "embedding:routes-mark", None, None, None)["clip"]
    assert (counted["tokens"], counted["cut"]) == (79, "(embedding)")


def test_the_llm_may_get_another_text(meter):
    one, other = (meter.count(text, None, None, None) for text in ("a cat", "word " * 300))
    assert meter.count("a cat", "word " * 300, None, None) == {"clip": one["clip"], "llm": other["llm"]}


def word_tokenizer(folder, words):
    """Writes a tokenizer of 64 tokens, one of them for each of the words."""
    vocabulary = {word: number for number, word in enumerate([*words, *map(str, range(64 - len(words)))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def own_encoder(tmp_path, name, *words):
    """Writes an encoder with its own tokenizer, and returns their folder."""
    folder = tmp_path / "one" / "text_encoders" / name
    folder.mkdir()
    save_file(tiny.rankgen_tensors(tiny.t5_encoder(vocab_size=64)), folder / "t5.safetensors")
    word_tokenizer(folder, words)
    return folder


def test_the_encoders_tokenizer_and_the_adapters_recipe_decide_on_the_count(place, tmp_path, started, meter):
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


def test_a_tokenizer_is_opened_again_only_when_its_files_change(place, tmp_path, meter, monkeypatch):
    folder = own_encoder(tmp_path, "own", "cat")
    opened, open_one = [], meter.TOKENIZERS.read
    monkeypatch.setattr(meter.TOKENIZERS, "read", lambda path: opened.append(path) or open_one(path))
    for _ in range(3):
        assert meter.count("cat dog", None, "own/t5.safetensors", None)["llm"]["tokens"] == 3
    assert opened == [folder / "t5.safetensors"]
    word_tokenizer(folder, ["longer", "words", "here"])
    meter.count("cat dog", None, "own/t5.safetensors", None)
    assert opened == [folder / "t5.safetensors"] * 2


def test_the_number_of_cached_tokenizers_is_limited(place, tmp_path, meter):
    for number in range(meter.TOKENIZERS.limit + 2):
        folder = own_encoder(tmp_path, f"own-{number}", "cat")
        place.choices("text_encoders")  # as the page does when it is refreshed
        meter.count("a cat", None, f"{folder.name}/t5.safetensors", None)
        assert (
            folder / "t5.safetensors" in meter.TOKENIZERS.entries
            and len(meter.TOKENIZERS.entries) <= meter.TOKENIZERS.limit
        )


@pytest.mark.parametrize(
    "name",
    [None, "gone.safetensors", "", "..", "../../secret", "/etc/passwd", "C:\\x", "\\\\host\\share", "a\0b"],
)
def test_for_a_name_that_is_not_listed_the_published_file_is_assumed(name, place, tmp_path, meter):
    (tmp_path / "secret").write_bytes(b"x")
    assert meter.count("a cat", None, name, name) == meter.count("a cat", None, None, None)


def test_for_an_unreadable_file_the_published_one_is_assumed_with_a_note_without_a_path(
    place, tmp_path, meter
):
    folder = tmp_path / "one" / "text_encoders" / "of its own"
    folder.mkdir()
    save_file(tiny.rankgen_tensors(tiny.t5_encoder()), folder / "t5.safetensors")
    (folder / "tokenizer.json").write_text("{", encoding="utf-8")
    (tmp_path / "one" / "llm4gen" / "cut.pth").write_bytes(b"PK")
    published = meter.count("a cat", None, None, None)
    counted = meter.count("a cat", None, "of its own/t5.safetensors", "cut.pth")
    note = counted.pop("note")
    assert counted == published
    assert "of its own cannot be read" in note and "cut.pth is refused" in note
    assert not re.search(r"pytest|tmp|one[/\\]", note)


INCOMPLETE = ["embedding:", "a cat embedding: ", "(" * 2000 + "a" + ")" * 2000]  # texts that ComfyUI fails at


@pytest.mark.parametrize("text", INCOMPLETE, ids=["embedding", "text-and-embedding", "parentheses"])
def test_a_text_that_comfyui_fails_at_is_an_error_that_says_so(text, meter, clip):
    from llm4gen.models.errors import UnreadableText  # noqa: PLC0415

    with pytest.raises((IndexError, RecursionError)):
        clip.tokenize(text)
    with pytest.raises(UnreadableText, match="parentheses and embeddings"):
        meter.count(text, None, None, None)


# The report of model files


@pytest.fixture
def mixture(place, tmp_path):
    """Model folders with encoders and adapters of every kind, good and bad."""
    encoders, adapters = tmp_path / "one" / "text_encoders", tmp_path / "one" / "llm4gen"
    save_file(tiny.rankgen_tensors(tiny.t5_encoder()), encoders / "t5.safetensors")
    save_file(
        tiny.rankgen_tensors(tiny.t5_encoder(vocab_size=4000)), encoders / "other-vocabulary.safetensors"
    )
    save_file({"text_model.embeddings.weight": torch.zeros(4, 4)}, encoders / "clip_l.safetensors")
    (encoders / "cut.bin").write_bytes(b"PK")
    (encoders / "cut.gguf").write_bytes(b"GGUF")
    write_t5(encoders / "small.gguf", tiny.t5_encoder(d_model=64, d_kv=16, d_ff=128))
    save_file(tiny.adapter_tensors(clip=768, llm=32), adapters / "fits.safetensors")
    torch.save(tiny.adapter_tensors(clip=768, llm=2048), adapters / "wide.pth")
    deep = {"llm4gen": json.dumps({"layer": 4})}
    deep["llm4gen_training"] = json.dumps({"lora": "a digest", "unet": None, "base_is_patched": True})
    save_file(tiny.adapter_tensors(clip=768, llm=32), adapters / "deep.safetensors", deep)
    save_file(tiny.adapter_tensors(clip=768), adapters / "odd.safetensors", {"llm4gen": "{"})
    return place


def test_the_report_lists_the_files_and_which_fit_together(mixture, tmp_path, inventory):
    report = inventory.inventory()
    json.dumps(report)
    encoders = {entry["name"]: entry for entry in report["encoders"]}
    found = {name: (one["kind"], one["width"], one["layers"], one["dtype"]) for name, one in encoders.items()}
    other = ("other", None, None, None)
    assert found == {
        "t5.safetensors": ("t5", 32, 3, "fp32"),
        "other-vocabulary.safetensors": ("t5", 32, 3, "fp32"),
        "small.gguf": ("t5", 64, 3, "F32"),
        "clip_l.safetensors": other,
        "cut.bin": other,
        "cut.gguf": other,
    }
    bad = {name for name, one in encoders.items() if one["error"]}
    assert bad == {"other-vocabulary.safetensors", "cut.bin", "cut.gguf"}
    assert [name for name, one in encoders.items() if one["reason"]] == ["clip_l.safetensors"]
    assert encoders["clip_l.safetensors"]["reason"].startswith(
        "clip_l.safetensors does not hold a T5 encoder"
    )
    assert "32100 tokens, but the encoder has 4000" in encoders["other-vocabulary.safetensors"]["error"]
    assert encoders["t5.safetensors"]["tokenizer"] == "ComfyUI's"

    adapters = {entry["name"]: entry for entry in report["adapters"]}
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
    assert {name for name, one in adapters.items() if one["trained_with"]} == {"deep.safetensors"}

    fitting = {(pair["encoder"], pair["adapter"]) for pair in report["pairs"] if pair["fits"]}
    assert fitting == {
        ("t5.safetensors", "fits.safetensors"),
        ("other-vocabulary.safetensors", "fits.safetensors"),
    }
    assert len(report["pairs"]) == 3 * 3, "only files of known width are paired"
    assert report["advice"] == {key: mixture.ADVICE[key] for key in ("text_encoders", "llm4gen")}
    assert re.fullmatch(r"\d+\.\d+\.\d+", report["version"])


def test_the_report_says_which_encoder_may_not_be_the_llm_of_an_adapter(place, tmp_path, inventory):
    """Each adapter says that an LLM trained it; the last two say so without its sizes, and without any word."""
    from llm4gen.models.checkpoints.same_llm import OTHER_FILE, OTHER_LLM  # noqa: PLC0415
    from llm4gen.models.llm import open_llm  # noqa: PLC0415

    encoders, adapters = tmp_path / "one" / "text_encoders", tmp_path / "one" / "llm4gen"
    oracle = tiny.t5_encoder()
    save_file(tiny.rankgen_tensors(oracle), encoders / "t5.safetensors")
    write_t5(encoders / "t5.gguf", oracle)
    save_file(tiny.rankgen_tensors(tiny.t5_encoder(num_layers=2)), encoders / "other.safetensors")
    save_file(tiny.rankgen_tensors(tiny.t5_encoder(d_model=64)), encoders / "wide.safetensors")
    facts = open_llm(encoders / "t5.safetensors").facts.entry
    old = {"name": facts["name"], "sha256_of_ends": facts["sha256_of_ends"]}
    for name, entry in {"new": {"llm": facts}, "old": {"llm": old}, "silent": {}}.items():
        metadata = {"llm4gen_training": json.dumps(entry)}
        save_file(tiny.adapter_tensors(clip=768), adapters / f"{name}.safetensors", metadata)
    report = json.loads(json.dumps(inventory.inventory()))
    names = {entry["name"]: entry["llm"] and entry["llm"]["name"] for entry in report["adapters"]}
    assert names == {
        "new.safetensors": facts["name"],
        "old.safetensors": facts["name"],
        "silent.safetensors": None,
    }
    found = {(one["adapter"], one["encoder"]): one["doubt"] for one in report["pairs"] if one["fits"]}
    assert {pair: doubt for pair, doubt in found.items() if doubt} == {
        ("new.safetensors", "t5.gguf"): OTHER_FILE,
        ("new.safetensors", "other.safetensors"): OTHER_LLM,
        ("old.safetensors", "t5.gguf"): OTHER_FILE,
        ("old.safetensors", "other.safetensors"): OTHER_FILE,
    }
    assert len(found) == 3 * 3


def test_the_report_holds_no_folder_names_of_the_machine(mixture, tmp_path, inventory):
    from llm4gen.nodes.tokenizers import open_tokenizer  # noqa: PLC0415

    folder = own_encoder(tmp_path, "of its own")
    (folder / "tokenizer.json").write_text("{", encoding="utf-8")
    assert str(folder) in open_tokenizer(folder / "t5.safetensors").error
    report = json.dumps(inventory.inventory())
    assert "The tokenizer in of its own cannot be read" in report
    assert not re.search(r"pytest|/tmp|one[/\\]", report)


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("The tokenizer in {0}/one/text_encoders/a b/c is", "The tokenizer in a b/c is"),
        ("OSError: '/home/somebody/x/config.json' is", "OSError: 'config.json' is"),
        (r"C:\Users\Somebody\x\model.bin is", "model.bin is"),
        (r"\\server\share\model.bin is", "model.bin is"),
        ("put it in ComfyUI/models/llm4gen, and/or 1 / 2", "put it in ComfyUI/models/llm4gen, and/or 1 / 2"),
    ],
)
def test_a_message_for_a_page_keeps_file_names_without_their_folders(message, shown, place, tmp_path):
    assert place.without_folders(message.format(tmp_path)) == shown


def test_a_file_is_examined_again_only_when_it_changes(mixture, tmp_path, inventory, monkeypatch):
    examined = []
    for cache in (inventory.ENCODERS, inventory.ADAPTERS):
        read = cache.read
        monkeypatch.setattr(cache, "read", lambda path, read=read: examined.append(path.name) or read(path))
    first = inventory.inventory()
    assert len(examined) == 10 and inventory.inventory() == first
    assert len(examined) == 10
    save_file(tiny.adapter_tensors(clip=768, llm=64), tmp_path / "one" / "llm4gen" / "fits.safetensors")
    inventory.inventory()
    assert examined[10:] == ["fits.safetensors"]


class Online:
    """The status of a file whose content a cloud drive keeps online."""

    def __init__(self, status, **marks):
        self.status = status
        vars(self).update(marks)

    def __getattr__(self, name):
        return getattr(self.status, name)


@pytest.mark.parametrize(
    "marks",
    [{"st_file_attributes": 0x400020}, {"st_file_attributes": 0x1020}, {"st_flags": 0x40000040}],
    ids=["OneDrive", "offline", "iCloud"],
)
def test_the_report_does_not_fetch_a_file_from_a_cloud_drive(marks, place, tmp_path, inventory, monkeypatch):
    names = ("one/text_encoders/t5.bin", "one/text_encoders/t5/model.bin", "one/llm4gen/p.safetensors")
    for path in (tmp_path / name for name in names):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\0")
    (tmp_path / "one/text_encoders/t5/config.json").write_text("{}", encoding="utf-8")
    stat, opened = os.stat, []
    monkeypatch.setattr(os, "stat", lambda path, **more: Online(stat(path, **more), **marks))
    real = io.open
    monkeypatch.setattr(
        io, "open", lambda path, *more, **other: opened.append(path) or real(path, *more, **other)
    )
    found = [*inventory.encoders().values(), *inventory.adapters().values()]
    assert len(found) == 3
    for one in found:
        assert re.fullmatch(r"\S+ is on a cloud drive.*Always keep on this device.*", one.error)
    assert [path for path in opened if str(path).startswith(str(tmp_path))] == []


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
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response.status, json.loads(content) if content else None

    return send


@pytest.mark.floor
@pytest.mark.parametrize("prefix", ["", "/api"])
def test_the_server_counts_and_reports(prefix, send):
    status, counted = send("POST", f"{prefix}/llm4gen/tokens", json.dumps(REQUEST | {"text": "cat " * 100}))
    assert status == 200 and counted.keys() == {"clip", "llm"}
    assert (counted["clip"]["tokens"], counted["clip"]["cut"]) == (100, ("cat " * 25).strip())
    assert counted["llm"]["limit"] == 256 and counted["llm"]["cut"] == ""
    status, report = send("GET", f"{prefix}/llm4gen/report")
    assert status == 200 and report.keys() == {"encoders", "adapters", "pairs", "kinds", "advice", "version"}
    (fitting,) = [
        pair for pair in report["pairs"] if pair["encoder"] == ENCODER and pair["adapter"] == ADAPTER
    ]
    assert fitting["fits"] is True


@pytest.mark.parametrize("width", [768, 2048, None])
def test_the_server_tells_a_checkpoints_kind_by_its_header(width, models, send, client):
    file = models / "checkpoints" / "routes" / "kind.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    name = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    save_file({name if width else "video": torch.zeros(2, width or 1)}, file)
    client.get("/object_info/CheckpointLoaderSimple")  # as the page does when it is refreshed
    request = json.dumps({"checkpoint": os.path.join("routes", "kind.safetensors")})
    assert send("POST", "/llm4gen/checkpoint", request) == (200, {"width": width, "kind": KINDS.get(width)})
    file.unlink()
    assert send("POST", "/llm4gen/checkpoint", request) == (200, {"width": None, "kind": None})


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are letters here")
def test_a_checkpoint_may_have_a_name_that_is_no_text(models, send, client):
    file = models / "checkpoints" / os.fsdecode(b"caf\xe9.safetensors")
    file.parent.mkdir(exist_ok=True)
    name = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    save_file({name: torch.zeros(2, 2048)}, file.with_name("a.safetensors"))
    file.with_name("a.safetensors").rename(file)
    client.get("/object_info/CheckpointLoaderSimple")
    answer = send("POST", "/llm4gen/checkpoint", json.dumps({"checkpoint": file.name}))
    file.unlink()
    assert answer == (200, {"width": 2048, "kind": "SDXL"})


@pytest.mark.parametrize("name", ["../../main.py", "/etc/passwd", "//host/share/x", "", "x" * 5000, "a\0b"])
def test_no_other_file_is_looked_for_as_a_checkpoint(name, send):
    answer = send("POST", "/llm4gen/checkpoint", json.dumps({"checkpoint": name}))
    assert answer == (200, {"width": None, "kind": None})


@pytest.mark.parametrize("body", ["{}", "[]", '{"checkpoint": null}', '{"checkpoint": "a", "text": "b"}'])
def test_a_malformed_question_for_a_checkpoint_is_refused(body, send):
    status, answer = send("POST", "/llm4gen/checkpoint", body)
    assert status == 400 and "checkpoint" in answer["error"]


@pytest.fixture
def own_gguf(models, client):
    """An encoder of the server with a tokenizer inside, which has a token for `cat` and none for `dog`."""
    path = models / "text_encoders" / "routes-own.gguf"
    path.parent.mkdir(exist_ok=True)
    header = own_tokenizer("cat")
    size = len(header["tokenizer.ggml.tokens"])
    write_decoder(path, make("Qwen2", vocab_size=size), **header)
    client.get("/object_info/LLM4GEN_LoadLLMEncoder")  # as the page does when it is refreshed
    yield path
    path.unlink()


@pytest.mark.parametrize(("text", "total"), [("cat dog", 3 + 2 + 4), ("cat dog " * 60, 3 + 60 * 6 + 1)])
def test_the_server_counts_with_a_gguf_files_own_tokenizer(text, total, own_gguf, send):
    tokenizer = AutoTokenizer.from_pretrained(own_gguf.parent, gguf_file=own_gguf.name, local_files_only=True)
    ids = tokenizer(f"pre {text}")["input_ids"]
    assert len(ids) == total, "the template's three letters, each word with its space, and the end token"
    request = json.dumps(REQUEST | {"text": text, "encoder": own_gguf.name, "adapter": ADAPTER})
    status, counted = send("POST", "/llm4gen/tokens", request)
    assert status == 200 and "note" not in counted
    cut = tokenizer.decode(ids[256:]).strip()
    assert counted["llm"] == {"tokens": len(ids), "limit": 256, "cut": cut}


def test_the_server_counts_without_any_model(empty_server):
    connection = http.client.HTTPConnection("127.0.0.1", empty_server.port, timeout=60)
    connection.request("POST", "/llm4gen/tokens", json.dumps(REQUEST), JSON)
    assert json.load(connection.getresponse())["clip"]["tokens"] == 2
    assert empty_server.get("/llm4gen/report")["encoders"] == []


BAD = {
    400: [
        "", "{", "[]", "1", "null", '"a"', "\0", b"\xff\xfe", "[" * 60000, "9" * 5000, "{}",
        *(json.dumps(REQUEST | wrong) for wrong in (
            {"text": None}, {"text": 1}, {"text": ["a"]}, {"text": "\ud800"}, {"llm_text": 1}, {"llm_text": "\udfff a"},
            {"encoder": 1}, {"encoder": ["x"]}, {"adapter": {}}, {"adapter": True}, {"more": 1},
        )),
    ],
    413: [json.dumps(REQUEST | {"text": "a" * 20001}), json.dumps(REQUEST | {"llm_text": "a" * 20001}), " " * 65537],
}  # fmt: skip


@pytest.mark.parametrize(
    ("status", "body"),
    [(status, body) for status, bodies in BAD.items() for body in bodies],
    ids=lambda it: repr(it)[:40],
)
def test_a_bad_request_body_is_refused(status, body, send):
    found, answer = send("POST", "/llm4gen/tokens", body)
    assert found == status and list(answer) == ["error"] and answer["error"]


@pytest.mark.parametrize("name", ["text", "llm_text"])
@pytest.mark.parametrize("text", INCOMPLETE, ids=["embedding", "text-and-embedding", "parentheses"])
def test_incomplete_syntax_in_a_text_is_not_a_bad_request(text, name, send):
    """The user may still be typing, and the browser's console shows every refusal in red."""
    status, answer = send("POST", "/llm4gen/tokens", json.dumps(REQUEST | {name: text}))
    counted = name == "llm_text" and "(" not in text  # the LLM's half ignores embeddings
    assert status == 200 and set(answer) == ({"clip", "llm"} if counted else {"note"})


def test_a_body_just_within_the_limits_is_accepted(send):
    body = json.dumps(REQUEST | {"text": "a" * 20000, "llm_text": "é" * 5000})
    assert send("POST", "/llm4gen/tokens", body + " " * (65536 - len(body)))[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        *({"Content-Type": kind} for kind in ("text/plain", "multipart/form-data; boundary=x", "\xe9", ";")),
        JSON | {"Content-Encoding": "gzip"},
    ],
)
def test_a_body_whose_headers_do_not_say_json_is_refused(headers, send):
    status, answer = send("POST", "/llm4gen/tokens", json.dumps(REQUEST), headers)
    if headers.get("Content-Encoding"):
        assert status in (400, 415)  # the web server may refuse the body itself, as it is not gzip
    else:
        assert status == 415 and list(answer) == ["error"]


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "TRACE"])
@pytest.mark.parametrize("path", ["/llm4gen/tokens", "/api/llm4gen/report"])
def test_other_methods_are_refused(method, path, send):
    status, answer = send(method, path, None if method in ("GET", "HEAD") else json.dumps(REQUEST))
    if path.endswith("report") and method in ("GET", "HEAD"):
        assert status == 200
    else:
        assert status == 405 and (method == "HEAD" or list(answer) == ["error"])


def test_the_server_answers_other_requests_while_it_counts(started, meter, monkeypatch):
    """Counting that takes long blocks neither the report nor any other request."""
    from llm4gen.nodes.pages import routes  # noqa: PLC0415

    begun, go_on = threading.Event(), threading.Event()

    def count(**request):
        begun.set()
        assert go_on.wait(20)
        return {"request": request}

    monkeypatch.setattr(meter, "count", count)
    instance = SimpleNamespace(routes=web.RouteTableDef())
    for server in (None, SimpleNamespace(), SimpleNamespace(PromptServer=SimpleNamespace())):
        monkeypatch.setitem(sys.modules, "server", server)
        routes.register()
        assert not list(instance.routes), "routes are registered although no server is running"
    monkeypatch.setitem(
        sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=instance))
    )
    routes.register()

    async def requests():
        app = web.Application()
        app.add_routes(instance.routes)
        async with TestClient(TestServer(app)) as client:
            waiting = asyncio.create_task(client.post("/llm4gen/tokens", json=REQUEST))
            assert await asyncio.to_thread(begun.wait, 20)
            try:
                assert (await client.get("/llm4gen/report")).status == 200
                assert (await client.post("/llm4gen/tokens", json=[])).status == 400
                assert not waiting.done()
            finally:
                go_on.set()
            assert (await (await waiting).json()) == {"request": REQUEST}

    asyncio.run(requests())

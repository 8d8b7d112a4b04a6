"""Where a node of another pack loses the LLM's half, the page says so: under known nodes before a run, and in a message
while a node runs. tests/support/foreign_pack stands for those packs."""

import shutil
from dataclasses import replace

import pytest

from front_end import FIND, NO_NOTE, SET, first_page, let_pass, run, says
from paths import ROOT
from pictures.browser import quiet_front_end
from pictures.screenshots import CLIP, LOADERS, Node, build
from sandbox.client import Client
from sandbox.model_choice import make_standins
from sandbox.server import Server
from sandbox.standins import ADAPTER, CHECKPOINT, ENCODER

CHUNKS = "chunks of 77"
BY_NAME, BY_RUN = "BNK_CLIPTextEncodeAdvanced", "ForeignEncodeTwice"
LOSES = "The LLM's half is lost here: put LLM4GEN Fuse Conditioning after this node."
COUPLE = (
    "Attention couple repeats regions of unequal length up to a common multiple, which may exceed the memory: choose "
    "“cut at 77”."
)
# The front end gives a new node the values of an earlier one in its place, so they are set.
FUSED = replace(CLIP, values={"strength": 1, "long_prompt": "cut at 77 (as published)"})
# LOADERS has the checkpoint, the encoder and the adapter, and LLM4GEN CLIP is behind them.
ENCODES = (*LOADERS, FUSED, Node(BY_NAME, (670, 0, 270, 170), {"text": "a cat"}, {"clip": (3, 0)}))


@pytest.fixture(scope="module")
def server(host, module_path):
    base = module_path / "base"
    shutil.copytree(ROOT / "tests" / "support" / "foreign_pack", base / "custom_nodes" / "foreign_pack")
    quiet_front_end(base)
    with Server(host, base, [make_standins(host)]) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    return Client(server.url)


@pytest.fixture(scope="module")
def page(server, browser):
    pytest.importorskip("playwright.sync_api", reason="NO PLAYWRIGHT: tests in a browser need it.")
    with first_page(server.url, browser) as page:
        yield page


def prompt(node, text, **fusion):
    """A node of the foreign pack behind LLM4GEN CLIP."""
    fused = {"clip": ["1", 1], "llm": ["2", 0], "adapter": ["3", 0], **fusion}
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": CHECKPOINT}},
        "2": {"class_type": "LLM4GEN_LoadLLMEncoder", "inputs": {"encoder_name": ENCODER}},
        "3": {"class_type": "LLM4GEN_LoadCrossAdapter", "inputs": {"adapter_name": ADAPTER}},
        "4": {"class_type": "LLM4GEN_ApplyToCLIP", "inputs": fused},
        "5": {"class_type": node, "inputs": {"clip": ["4", 0], "text": text}},
        "6": {"class_type": "PreviewAny", "inputs": {"source": ["5", 0]}},
    }


def notices(client, graph):
    """The nodes that the server's notices name in a run."""
    found = []
    client.run(graph, lambda kind, data: found.append(data["node"]) if kind == "llm4gen.notice" else None)
    return found


@pytest.mark.floor
def test_a_node_that_loses_the_llms_half_is_named_once_in_each_run(client, server):
    for text in ("a cat", "a dog"):
        assert notices(client, prompt(BY_RUN, text)) == ["5"]
    lines = [line for line in server.log_text().splitlines() if "Put LLM4GEN Fuse Conditioning after" in line]
    assert len(lines) == 2 and all("Node 5 " in line for line in lines)


@pytest.mark.parametrize("node", ["CLIPTextEncode", "ForeignEncodeJoinedParts", "ForeignEncodeListOfTexts"])
def test_a_node_that_keeps_the_llms_half_gets_no_notice(node, client):
    assert notices(client, prompt(node, "a cat")) == []


def test_strength_0_loses_nothing(client):
    assert notices(client, prompt(BY_RUN, "a cat", strength=0.0)) == []


def test_a_known_node_that_loses_the_llms_half_says_so_before_a_run(page):
    build(page, ENCODES)
    (encode,), (clip,) = page.evaluate(FIND, BY_NAME), page.evaluate(FIND, CLIP.type)
    says(page, encode, LOSES)
    page.evaluate(SET, [clip, "strength", 0])
    page.wait_for_function(NO_NOTE, arg=encode)
    build(page, (*LOADERS, Node(BY_NAME, (350, 0, 270, 170), {"text": "a cat"}, {"clip": (0, 1)})))
    let_pass(page, 1000)
    assert page.evaluate(NO_NOTE, page.evaluate(FIND, BY_NAME)[0])


def test_a_message_in_the_page_names_the_node_that_ran(page, client):
    # ComfyUI does not run a node again with a text that it knows from another test.
    node = Node(BY_RUN, ENCODES[4].box, {"text": "a message"}, ENCODES[4].links)
    build(page, (*ENCODES[:4], node))
    page.evaluate(
        """(type) => {
          const node = app.graph.nodes.find((node) => node.type === type);
          node.title = "My encoder";
          const preview = LiteGraph.createNode("PreviewAny");
          app.graph.add(preview);
          node.connect(0, preview, 0);
        }""",
        BY_RUN,
    )
    assert run(page, client)["status"]["status_str"] == "success"
    message = page.locator(".p-toast-message", has_text=LOSES)
    message.wait_for()
    assert "My encoder" in message.inner_text()


def test_chunks_under_attention_couple_are_advised_against(page):
    coupled = Node("AttentionCouplePPM", (1000, 0, 270, 80), {}, {"model": (0, 0), "positive": (4, 0)})
    build(page, (*ENCODES, coupled))
    (clip,) = page.evaluate(FIND, CLIP.type)
    page.wait_for_function(NO_NOTE, arg=clip)
    page.evaluate(SET, [clip, "long_prompt", CHUNKS])
    says(page, clip, COUPLE)
    build(page, ENCODES)
    (clip,) = page.evaluate(FIND, CLIP.type)
    page.evaluate(SET, [clip, "long_prompt", CHUNKS])
    let_pass(page, 1000)
    assert page.evaluate(NO_NOTE, clip)


def test_fuse_conditioning_counts_the_llms_tokens_alone(page):
    links = {"conditioning": (3, 0), "llm": (1, 0), "adapter": (2, 0)}
    encode = Node("CLIPTextEncode", (350, 0, 270, 170), {"text": "a cat"}, {"clip": (0, 1)})
    build(
        page,
        (*LOADERS, encode, Node("LLM4GEN_FuseConditioning", (670, 0, 300, 240), {"text": "a cat"}, links)),
    )
    (fuse,) = page.evaluate(FIND, "LLM4GEN_FuseConditioning")
    says(page, fuse, "LLM 5/256")
    page.evaluate(SET, [fuse, "strength", 0])
    page.wait_for_function(NO_NOTE, arg=fuse)

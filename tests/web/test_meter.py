"""While a prompt is typed, the real front end shows how many tokens CLIP and the LLM use of it."""

import json

import pytest

from front_end import (
    FIND,
    NO_NOTE,
    NOTE,
    PROMPT,
    SET,
    assert_no_complaints,
    draw,
    drop,
    first_page,
    let_pass,
    noted,
    says,
)
from paths import COMFYUI, T5_TOKENIZER
from sandbox.standins import ADAPTER, CHECKPOINT, ENCODER
from sandbox.workflow import EXAMPLES, TEXT_TO_IMAGE, read_workflow

pytest.importorskip("playwright.sync_api", reason="NO PLAYWRIGHT: tests in a browser need it.")

CLASSIC, VUE = {"Comfy.VueNodes.Enabled": False}, {"Comfy.VueNodes.Enabled": True}
CONDITIONING, LLM_LOADER, ADAPTER_LOADER = (
    "LLM4GEN_Conditioning",
    "LLM4GEN_LoadLLMEncoder",
    "LLM4GEN_LoadCrossAdapter",
)
PROMPTS = [
    "",
    "a red cat on a mat",
    "An oil painting of two sheep, by candlelight; 35mm, f/1.8, highly detailed!!",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich",
    "  spaces   and\nlines\n\nbetween  ",
    "рыжий кот сидит на коврике под окном",
    "Мороз и солнце; день чудесный!",
    "зимний лес, туман, утро, масло, холст",
    "съешь ещё этих мягких французских булок",
    "一只红色的猫坐在垫子上",
    "江南水乡,小桥流水,晨雾",
    "霓虹灯下的雨夜街道 cyberpunk 风格",
    "蓝色的绵羊在棕色花瓶旁边",
    "قطة حمراء على سجادة",
    "سوق قديم في المدينة عند الغروب",
    "خيول تركض في الصحراء، ضوء ذهبي",
    "بيت صغير بجانب البحر",
    "चटाई पर एक लाल बिल्ली",
    "पहाड़ों के ऊपर सूर्योदय, तेल चित्र",
    "नीली भेड़ और भूरा फूलदान",
]
QUIET = 600  # ms: twice as long as a text must stay unchanged before it is sent
TOO_LONG = " ".join(["cat"] * 75 + ["zebra", "lion", "tiger"])  # CLIP makes one token of each word

# Adds a node for each prompt, connected to the loaders of the open graph; returns the nodes' ids.
ADD_PROMPTS = """([prompts, loaders]) => prompts.map((prompt) => {
  const node = LiteGraph.createNode("LLM4GEN_Conditioning");
  app.graph.add(node);
  for (const [type, input] of loaders) {
    const loader = app.graph.nodes.find((node) => node.type === type);
    loader.connect(0, node, node.findInputSlot(input));
  }
  node.widgets.find((widget) => widget.name === "text").value = prompt;
  return node.id;
})"""
# Returns how many nodes have a note, and the graph as it is saved and as it is sent: with all notes, and without them.
WITH_AND_WITHOUT = """async () => {
  const both = async () => [app.graph.serialize(), (await app.graphToPrompt()).output];
  const noted = app.graph.nodes.filter((node) => node.widgets?.some((w) => w.name === "llm4gen_note"));
  const withNotes = await both();
  for (const node of noted) node.widgets.splice(node.widgets.findIndex((w) => w.name === "llm4gen_note"), 1);
  return [noted.length, withNotes, await both()];
}"""
# Each makes the connection from the loaders to the positive prompt's node less direct, and returns that node's id in
# the graph that is open then.
INDIRECT = {
    "a reroute": """(id) => {
      const node = app.graph.getNodeById(id);
      const reroute = LiteGraph.createNode("Reroute");
      app.graph.add(reroute);
      app.graph.nodes.find((node) => node.type === "LLM4GEN_LoadLLMEncoder").connect(0, reroute, 0);
      reroute.connect(0, node, node.findInputSlot("llm"));
      return id;
    }""",
    "a subgraph's border": """(id) => {
      const { node } = app.graph.convertToSubgraph(new Set([app.graph.getNodeById(id)]));
      app.canvas.openSubgraph(node.subgraph, node);
      return node.subgraph.nodes[0].id;
    }""",
    "a subgraph's own widget": """(id) => {
      const loaders = app.graph.nodes.filter((node) => node.type.startsWith("LLM4GEN_Load"));
      const { node } = app.graph.convertToSubgraph(new Set(loaders));
      const inner = node.subgraph.nodes.find((node) => node.type === "LLM4GEN_LoadLLMEncoder");
      const slot = inner.inputs.find((input) => input.widget?.name === "encoder_name");
      const file = inner.widgets[0].value;
      node.subgraph.addInput("encoder_name", "COMBO").connect(slot, inner);
      inner.widgets[0].value = "another.bin";
      node.widgets.find((widget) => widget.name === "encoder_name").value = file;
      return id;
    }""",
}
# Types into the first prompt, a letter every so many milliseconds of the page's own time.
TYPE = """async ([text, pause]) => {
  const area = document.querySelector("textarea");
  for (const letter of text) {
    area.value += letter;
    area.dispatchEvent(new Event("input", { bubbles: true }));
    await new Promise((done) => setTimeout(done, pause));
  }
}"""
# Inserts a LoRA loader between LLM4GEN CLIP and a prompt.
LORA_BETWEEN = """(id) => {
  const lora = LiteGraph.createNode("LoraLoader");
  app.graph.add(lora);
  app.graph.nodes.find((node) => node.type === "LLM4GEN_ApplyToCLIP").connect(0, lora, lora.findInputSlot("clip"));
  lora.connect(1, app.graph.getNodeById(id), 0);
}"""
# Adds a node that encodes a prompt, behind LLM4GEN CLIP; returns its id.
BEHIND_LLM4GEN_CLIP = """([type, texts]) => {
  const node = LiteGraph.createNode(type);
  app.graph.add(node);
  app.graph.nodes.find((other) => other.type === "LLM4GEN_ApplyToCLIP").connect(0, node, node.findInputSlot("clip"));
  for (const [name, text] of Object.entries(texts)) node.widgets.find((widget) => widget.name === name).value = text;
  return node.id;
}"""
# Connects a new node, with the given text, to the input `llm_text`.
CONNECT_LLM_TEXT = """([id, type, text]) => {
  const node = app.graph.getNodeById(id);
  const source = LiteGraph.createNode(type);
  app.graph.add(source);
  source.widgets[0].value = text;
  source.connect(0, node, node.findInputSlot("llm_text"));
}"""
# Connects a new adapter, which has another recipe than the published one, to a node.
CONNECT_NEW_ADAPTER = """(id) => {
  const node = app.graph.getNodeById(id);
  const made = LiteGraph.createNode("LLM4GEN_NewCrossAdapter");
  app.graph.add(made);
  made.connect(0, node, node.findInputSlot("adapter"));
}"""
# The note's distances on the screen from the left, top, right and bottom of its node, and its height.
DISTANCES = """(id) => {
  const node = app.graph.getNodeById(id);
  const text = node.widgets.find((widget) => widget.name === "llm4gen_note").element.firstChild.getBoundingClientRect();
  const canvas = app.canvas.canvas.getBoundingClientRect();
  const [x, y] = app.canvas.ds.convertOffsetToCanvas([...node.pos]);
  const scale = app.canvas.ds.scale;
  const box = { left: canvas.x + x, top: canvas.y + y };
  const element = document.querySelector(`[data-node-id="${id}"]`)?.getBoundingClientRect();
  const end = element ?? { right: box.left + node.size[0] * scale, bottom: box.top + node.size[1] * scale };
  return [text.left - box.left, text.top - box.top, end.right - text.right, end.bottom - text.bottom, text.height];
}"""


@pytest.fixture(scope="module", params=[CLASSIC, VUE], ids=["classic", "vue"])
def page(request, server, browser):
    with first_page(server.url, browser, **request.param) as page:
        page.sent = []  # the bodies of all requests for counts
        page.on("request", lambda r: page.sent.append(r.post_data) if r.url.endswith("/tokens") else None)
        yield page


@pytest.fixture
def graph(page):
    """Opens the plainest example with the stand-ins chosen; the id of the positive prompt's node."""
    return open_example(page, TEXT_TO_IMAGE, CONDITIONING)


@pytest.fixture(scope="module")
def count():
    """A function that counts a text's tokens with transformers' tokenizers of CLIP and T5, from ComfyUI's files."""
    from transformers import AutoTokenizer, CLIPTokenizer  # noqa: PLC0415

    clip = CLIPTokenizer.from_pretrained(COMFYUI / "comfy" / "sd1_tokenizer")
    t5 = AutoTokenizer.from_pretrained(T5_TOKENIZER)
    return lambda text: (len(clip(text)["input_ids"]) - 2, len(t5("pre " + text)["input_ids"]))


def open_example(page, file, prompt):
    """Opens an example workflow with the stand-ins chosen; the id of its first node of the type `prompt`."""
    page.evaluate("() => { app.canvas.setGraph(app.graph); app.graph.clear(); }")
    drop(page, file, read_workflow(file)["id"])
    for node, name, value in (
        (LLM_LOADER, "encoder_name", ENCODER),
        (ADAPTER_LOADER, "adapter_name", ADAPTER),
        ("CheckpointLoaderSimple", "ckpt_name", CHECKPOINT),
    ):
        page.evaluate(SET, [page.evaluate(FIND, node)[0], name, value])
    return page.evaluate(FIND, prompt)[0]


def request_body(text):
    """The request that asks the server for a prompt's counts."""
    return {"text": text, "llm_text": None, "encoder": ENCODER, "adapter": ADAPTER}


def counts(clip, llm):
    """The note's line of counts."""
    return f"CLIP {clip}/75 · LLM {llm}/256"


def cut(half, text):
    """The note's line about a cut prompt. Isolates keep `text` in one piece whichever direction its letters run in."""
    return f"{half} stops before: \N{FIRST STRONG ISOLATE}{text}\N{POP DIRECTIONAL ISOLATE}"


@pytest.mark.usefixtures("graph")
def test_the_counts_equal_those_of_transformers_tokenizers(page, count):
    nodes = page.evaluate(ADD_PROMPTS, [PROMPTS, [[LLM_LOADER, "llm"], [ADAPTER_LOADER, "adapter"]]])
    for node, prompt in zip(nodes, PROMPTS, strict=True):
        says(page, node, counts(*count(prompt)))


def test_typing_sends_few_requests_and_ends_with_the_right_count(page, graph, count):
    text = "a blue sheep beside a brown vase, softly"
    area = page.locator("textarea").first
    area.fill("")
    says(page, graph, counts(*count("")))
    area.press_sequentially(text)
    says(page, graph, counts(*count(text)))
    area.fill("")
    says(page, graph, counts(*count("")))
    page.sent.clear()
    # In ms: faster than anyone types; one request for each letter would be too many. The page types by itself, because
    # keys that are held up on their way to it are slow typing.
    page.evaluate(TYPE, [text, 50])
    says(page, graph, counts(*count(text)))
    assert json.loads(page.sent[-1]) == request_body(text)
    assert len(page.sent) <= len(text) / 4
    page.evaluate(SET, [graph, "strength", 0.5])  # no count depends on it
    area.press("End")
    let_pass(page, QUIET)
    says(page, graph, counts(*count(text)))
    assert len(page.sent) == len(set(page.sent))


def test_unfinished_syntax_and_a_very_long_text_cause_no_error_in_the_console(page, graph, count):
    """The console shows every error of the server in red."""
    says(page, graph, counts(*count(page.evaluate(PROMPT)[str(graph)]["inputs"]["text"])))
    page.complaints.clear()
    page.evaluate(SET, [graph, "text", "a cat embedding:"])
    page.wait_for_function(NO_NOTE, arg=graph)
    page.evaluate(SET, [graph, "text", "a cat embedding:x"])
    says(page, graph, counts(*count("a cat")))
    longest = "cat " * 5000
    page.evaluate(SET, [graph, "text", longest])
    page.wait_for_function(f"(id) => ({NOTE})(id)?.[0]?.startsWith('CLIP 5000/75')", arg=graph)
    page.sent.clear()
    page.evaluate(SET, [graph, "text", f"{longest}c"])
    page.wait_for_function(NO_NOTE, arg=graph)
    let_pass(page, QUIET)
    assert page.sent == []
    page.evaluate(SET, [graph, "text", longest])
    page.wait_for_function(f"(id) => ({NOTE})(id)?.[0]?.startsWith('CLIP 5000/75')", arg=graph)
    assert_no_complaints(page)


def test_the_note_of_a_cut_prompt_names_the_first_words_that_are_cut(page, graph, count):
    page.evaluate(SET, [graph, "text", TOO_LONG])
    says(page, graph, counts(*count(TOO_LONG)), cut("CLIP", "zebra lion tiger"))
    page.evaluate(SET, [graph, "long_prompt", "chunks of 77"])
    says(page, graph, f"CLIP 78/150 · LLM {count(TOO_LONG)[1]}/256")
    long = TOO_LONG + " cat" * 300
    page.evaluate(SET, [graph, "text", long])
    page.wait_for_function(f"(id) => ({NOTE})(id)?.[1]?.startsWith('LLM stops before: \u2068')", arg=graph)
    count_line, cut_line = page.evaluate(NOTE, graph)
    assert count_line == f"CLIP {count(long)[0]}/450 · LLM {count(long)[1]}/256"
    assert cut_line == cut("LLM", "cat " * 9 + "cat…")


def test_a_note_is_shown_inside_its_node(page, graph):
    page.evaluate(SET, [graph, "text", TOO_LONG])
    for line in noted(page, graph, 2):
        page.get_by_text(line, exact=True).first.wait_for()
    page.wait_for_function(f"(id) => ({DISTANCES})(id).every((distance) => distance > 0)", arg=graph)


def test_saved_and_sent_graphs_do_not_contain_the_notes(page, graph):
    page.evaluate(SET, [graph, "text", TOO_LONG])
    noted(page, graph, 2)
    noted(page, page.evaluate(FIND, CONDITIONING)[1], 1)
    draw(page)
    count, with_notes, without_notes = page.evaluate(WITH_AND_WITHOUT)
    assert count == 2
    assert with_notes == without_notes
    saved = {node["id"]: node for node in with_notes[0]["nodes"]}
    for node in read_workflow(TEXT_TO_IMAGE)["nodes"]:
        assert len(saved[node["id"]].get("widgets_values", [])) == len(node.get("widgets_values", []))


@pytest.mark.parametrize("through", ["a reroute", "a subgraph's border", "a subgraph's own widget"])
def test_the_files_are_found_through_indirect_connections(through, page, graph, count):
    """The files decide how the LLM counts: the request must name them, however the nodes are connected."""
    node = page.evaluate(INDIRECT[through], graph)
    page.evaluate(SET, [node, "text", f"found through {through}"])
    says(page, node, counts(*count(f"found through {through}")))
    assert request_body(f"found through {through}") in map(json.loads, page.sent)


def test_the_llms_own_text_is_counted_where_it_is_known(page, graph, count):
    page.evaluate(SET, [graph, "text", "tags, and tags"])
    page.evaluate(CONNECT_LLM_TEXT, [graph, "PrimitiveStringMultiline", "A whole sentence, for the LLM."])
    clip, llm = count("tags, and tags")[0], count("A whole sentence, for the LLM.")[1]
    says(page, graph, counts(clip, llm))
    # The page cannot know the result of this node.
    page.evaluate(CONNECT_LLM_TEXT, [graph, "StringConcatenate", "Half a sentence"])
    says(page, graph, f"CLIP {clip}/75")


def test_the_llms_half_has_no_count_where_only_the_run_can_tell_the_adapters_recipe(page, graph, count):
    clip, llm = count("")
    page.evaluate(SET, [graph, "text", ""])
    says(page, graph, counts(clip, llm))
    page.evaluate(CONNECT_NEW_ADAPTER, graph)
    says(page, graph, f"CLIP {clip}/75")


def test_clip_text_encode_has_a_note_only_behind_llm4gen_clip(page, count):
    node = open_example(page, EXAMPLES / "llm4gen_lora.json", "CLIPTextEncode")
    text = page.evaluate(PROMPT)[str(node)]["inputs"]["text"]
    says(page, node, counts(*count(text)))
    page.evaluate(LORA_BETWEEN, node)
    page.evaluate(SET, [node, "text", "through a LoRA"])
    says(page, node, counts(*count("through a LoRA")))
    checkpoint = page.evaluate(FIND, "CheckpointLoaderSimple")[0]
    connect_clip = "([from, to]) => app.graph.getNodeById(from).connect(1, app.graph.getNodeById(to), 0)"
    page.evaluate(connect_clip, [checkpoint, node])
    page.wait_for_function(NO_NOTE, arg=node)


def test_each_prompt_of_sdxls_own_nodes_is_counted_and_the_llm_reads_the_first(page, count):
    open_example(page, EXAMPLES / "llm4gen_clip.json", "CLIPTextEncode")
    refiner = page.evaluate(BEHIND_LLM4GEN_CLIP, ["CLIPTextEncodeSDXLRefiner", {"text": "a red cat"}])
    both = {"text_g": "a blue sheep beside a brown vase", "text_l": TOO_LONG}
    base = page.evaluate(BEHIND_LLM4GEN_CLIP, ["CLIPTextEncodeSDXL", both])
    says(page, refiner, counts(*count("a red cat")))
    clip, llm = count(both["text_g"])
    counted = f"CLIP-G {clip}/75 · CLIP-L 78/75 · LLM {llm}/256"
    says(page, base, counted, cut("CLIP-L", "zebra lion tiger"))


def test_the_properties_panel_has_rows_for_the_inputs_and_none_for_the_note(page, graph):
    page.wait_for_function(f"(id) => ({NOTE})(id)?.length", arg=graph)
    page.evaluate("(id) => app.canvas.selectNode(app.graph.getNodeById(id))", graph)
    page.get_by_label("Toggle properties panel").click()
    panel = page.get_by_test_id("properties-panel")
    panel.get_by_text("strength", exact=True).wait_for()
    rows = panel.inner_text()
    page.get_by_label("Toggle properties panel").click()  # the other tests see the page without it
    assert "long_prompt" in rows and "llm4gen_note" not in rows

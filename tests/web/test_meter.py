"""What stands under a prompt while it is typed: how much of it either half reads, in the real front end."""

import json

import pytest

from front_end import FIND, NOTE, PROMPT, SET, drop, first_page, says
from paths import COMFYUI, T5_TOKENIZER
from sandbox.standins import ADAPTER, CHECKPOINT, ENCODER
from sandbox.workflow import EXAMPLES, TEXT_TO_IMAGE, read_workflow

pytest.importorskip("playwright.sync_api", reason="NO PLAYWRIGHT: the browser is not driven.")

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
WORDS = ["cat"] * 75 + ["zebra", "lion", "tiger"]  # a token each

# A node for each prompt, fed by the loaders of the open graph.
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
# The graph as it is saved and as it is sent, with all notes there are and with none.
WITH_AND_WITHOUT = """async () => {
  const both = async () => [app.graph.serialize(), (await app.graphToPrompt()).output];
  const noted = app.graph.nodes.filter((node) => node.widgets?.some((w) => w.name === "llm4gen_note"));
  const withNotes = await both();
  for (const node of noted) node.widgets.splice(node.widgets.findIndex((w) => w.name === "llm4gen_note"), 1);
  return [noted.length, withNotes, await both()];
}"""
# Longer wires from the loaders to the positive prompt's node: ends with that node in sight, and tells its id.
WAYS = {
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
# One more node between LLM4GEN CLIP and a prompt.
LORA_BETWEEN = """(id) => {
  const lora = LiteGraph.createNode("LoraLoader");
  app.graph.add(lora);
  app.graph.nodes.find((node) => node.type === "LLM4GEN_ApplyToCLIP").connect(0, lora, lora.findInputSlot("clip"));
  lora.connect(1, app.graph.getNodeById(id), 0);
}"""
# Another node's words for the LLM.
FEED = """([id, type, words]) => {
  const node = app.graph.getNodeById(id);
  const source = LiteGraph.createNode(type);
  app.graph.add(source);
  source.widgets[0].value = words;
  source.connect(0, node, node.findInputSlot("llm_text"));
}"""
GONE = f"(id) => ({NOTE})(id) === null"
# Boxes on the screen: the note's text and the node that it belongs to.
BOXES = """(id) => {
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
        page.asked = []
        page.on("request", lambda r: page.asked.append(r.post_data) if r.url.endswith("/tokens") else None)
        yield page


@pytest.fixture
def graph(page):
    """The plainest example, opened anew, with the stand-ins chosen; the positive prompt's node."""
    return open_example(page, TEXT_TO_IMAGE, CONDITIONING)


@pytest.fixture(scope="module")
def count():
    """Tokens by CLIP's and T5's tokenizers themselves, from the host's files."""
    from transformers import AutoTokenizer, CLIPTokenizer  # noqa: PLC0415

    clip = CLIPTokenizer.from_pretrained(COMFYUI / "comfy" / "sd1_tokenizer")
    t5 = AutoTokenizer.from_pretrained(T5_TOKENIZER)
    return lambda text: (len(clip(text)["input_ids"]) - 2, len(t5("pre " + text)["input_ids"]))


def open_example(page, file, prompt):
    """Opens an example workflow with the stand-ins chosen; the first node of the type."""
    page.evaluate("() => { app.canvas.setGraph(app.graph); app.graph.clear(); }")
    drop(page, file, read_workflow(file)["id"])
    for node, name, value in (
        (LLM_LOADER, "encoder_name", ENCODER),
        (ADAPTER_LOADER, "adapter_name", ADAPTER),
        ("CheckpointLoaderSimple", "ckpt_name", CHECKPOINT),
    ):
        page.evaluate(SET, [page.evaluate(FIND, node)[0], name, value])
    return page.evaluate(FIND, prompt)[0]


def question(text):
    return {"text": text, "llm_text": None, "encoder": ENCODER, "adapter": ADAPTER}


def counts(clip, llm):
    return f"CLIP {clip}/75 · LLM {llm}/256"


def cut(half, words):
    """Words stand by themselves in the line, whichever way they run."""
    return f"{half} stops before: \N{FIRST STRONG ISOLATE}{words}\N{POP DIRECTIONAL ISOLATE}"


@pytest.mark.usefixtures("graph")
def test_the_counts_are_the_tokenizers_own(page, count):
    nodes = page.evaluate(ADD_PROMPTS, [PROMPTS, [[LLM_LOADER, "llm"], [ADAPTER_LOADER, "adapter"]]])
    for node, prompt in zip(nodes, PROMPTS, strict=True):
        says(page, node, counts(*count(prompt)))


def test_typing_asks_a_few_times_and_ends_with_the_right_count(page, graph, count):
    text = "a blue sheep beside a brown vase, softly"
    area = page.locator("textarea").first
    area.fill("")
    says(page, graph, counts(*count("")))
    page.asked.clear()
    area.press_sequentially(
        text, delay=50
    )  # ms: nobody types faster, and a look each would be a request each
    says(page, graph, counts(*count(text)))
    assert json.loads(page.asked[-1]) == question(text)
    assert len(page.asked) <= len(text) / 4
    page.evaluate(SET, [graph, "strength", 0.5])  # which no count depends on
    area.press("End")
    says(page, graph, counts(*count(text)))
    assert len(page.asked) == len(set(page.asked))


def test_half_a_syntax_and_a_long_text_are_no_errors(page, graph, count):
    """The console shows every refusal of the server's in red."""
    says(page, graph, counts(*count(page.evaluate(PROMPT)[str(graph)]["inputs"]["text"])))
    page.complaints.clear()
    page.evaluate(SET, [graph, "text", "a cat embedding:"])
    page.wait_for_function(GONE, arg=graph)
    page.evaluate(SET, [graph, "text", "a cat embedding:x"])
    says(page, graph, counts(*count("a cat")))
    longest = "cat " * 5000
    page.evaluate(SET, [graph, "text", longest])
    page.wait_for_function(f"(id) => ({NOTE})(id)?.[0]?.startsWith('CLIP 5000/75')", arg=graph)
    page.asked.clear()
    page.evaluate(SET, [graph, "text", f"{longest}c"])
    page.wait_for_function(GONE, arg=graph)
    page.wait_for_timeout(600)  # ms: twice as long as a question must stand
    assert page.asked == []
    page.evaluate(SET, [graph, "text", longest])
    page.wait_for_function(f"(id) => ({NOTE})(id)?.[0]?.startsWith('CLIP 5000/75')", arg=graph)
    assert page.complaints == []


def test_a_cut_prompt_names_the_first_words_that_are_cut(page, graph, count):
    text = " ".join(WORDS)
    page.evaluate(SET, [graph, "text", text])
    says(page, graph, counts(*count(text)), cut("CLIP", "zebra lion tiger"))
    page.evaluate(SET, [graph, "long_prompt", "chunks of 77"])
    says(page, graph, f"CLIP 78/150 · LLM {count(text)[1]}/256")
    long = text + " cat" * 300
    page.evaluate(SET, [graph, "text", long])
    page.wait_for_function(f"(id) => ({NOTE})(id)?.[1]?.startsWith('LLM stops before: \u2068')", arg=graph)
    head, tail = page.evaluate(NOTE, graph)
    assert head == f"CLIP {count(long)[0]}/450 · LLM {count(long)[1]}/256"
    assert tail == cut("LLM", "cat " * 9 + "cat…")


def test_a_note_lies_within_its_node(page, graph):
    page.evaluate(SET, [graph, "text", " ".join(WORDS)])
    page.wait_for_function(f"(id) => ({NOTE})(id)?.length === 2", arg=graph)
    for line in page.evaluate(NOTE, graph):
        page.get_by_text(line, exact=True).first.wait_for()
    page.wait_for_function(f"(id) => ({BOXES})(id).every((distance) => distance > 0)", arg=graph)


def test_saved_and_sent_graphs_know_nothing_of_it(page, graph):
    page.evaluate(SET, [graph, "text", " ".join(WORDS)])
    page.wait_for_function(f"(id) => ({NOTE})(id)?.length === 2", arg=graph)
    noted, with_notes, without = page.evaluate(WITH_AND_WITHOUT)
    assert noted == 2
    assert with_notes == without
    saved = {node["id"]: node for node in with_notes[0]["nodes"]}
    for node in read_workflow(TEXT_TO_IMAGE)["nodes"]:
        assert len(saved[node["id"]].get("widgets_values", [])) == len(node.get("widgets_values", []))


@pytest.mark.parametrize("way", ["a reroute", "a subgraph's border", "a subgraph's own widget"])
def test_the_files_are_found_through(way, page, graph, count):
    """The files decide how the LLM counts: the question must name them, however the wires run."""
    node = page.evaluate(WAYS[way], graph)
    page.evaluate(SET, [node, "text", f"found through {way}"])
    says(page, node, counts(*count(f"found through {way}")))
    assert question(f"found through {way}") in map(json.loads, page.asked)


def test_other_words_for_the_llm_are_counted_where_they_are_known(page, graph, count):
    page.evaluate(SET, [graph, "text", "tags, and tags"])
    page.evaluate(FEED, [graph, "PrimitiveStringMultiline", "A whole sentence, for the LLM."])
    clip, llm = count("tags, and tags")[0], count("A whole sentence, for the LLM.")[1]
    says(page, graph, counts(clip, llm))
    page.evaluate(FEED, [graph, "StringConcatenate", "Half a sentence"])  # and who knows what else
    says(page, graph, f"CLIP {clip}/75")


def test_clip_text_encode_has_one_behind_llm4gen_clip_alone(page, count):
    node = open_example(page, EXAMPLES / "llm4gen_lora.json", "CLIPTextEncode")
    text = page.evaluate(PROMPT)[str(node)]["inputs"]["text"]
    says(page, node, counts(*count(text)))
    page.evaluate(LORA_BETWEEN, node)
    page.evaluate(SET, [node, "text", "through a LoRA"])
    says(page, node, counts(*count("through a LoRA")))
    checkpoint = page.evaluate(FIND, "CheckpointLoaderSimple")[0]
    plain = "([from, to]) => app.graph.getNodeById(from).connect(1, app.graph.getNodeById(to), 0)"
    page.evaluate(plain, [checkpoint, node])
    page.wait_for_function(GONE, arg=node)


def test_the_panel_of_properties_has_a_row_for_each_input_and_none_for_the_note(page, graph):
    page.wait_for_function(f"(id) => ({NOTE})(id)?.length", arg=graph)
    page.evaluate("(id) => app.canvas.selectNode(app.graph.getNodeById(id))", graph)
    page.get_by_label("Toggle properties panel").click()
    panel = page.get_by_test_id("properties-panel")
    panel.get_by_text("strength", exact=True).wait_for()
    rows = panel.inner_text()
    page.get_by_label("Toggle properties panel").click()  # the other tests see the page without it
    assert "long_prompt" in rows and "llm4gen_note" not in rows

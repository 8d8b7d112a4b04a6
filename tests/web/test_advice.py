"""Before a run, the real front end shows notes under our nodes: a model is missing, damaged or does not fit."""

import json
import re
from functools import partial
from itertools import combinations

import pytest
import torch
from safetensors.torch import save_file

import tiny
from front_end import (
    FAULTY,
    FIND,
    NO_NOTE,
    NOTE,
    SET,
    UNREGISTERED,
    assert_no_warnings,
    drop,
    first_page,
    fresh_page,
    let_pass,
    noted,
    prefer,
    ready,
    refresh,
    says,
)
from llm4gen.models.checkpoints.same_llm import OTHER_FILE, OTHER_LLM, SENTENCES
from sandbox.standin_models import cross_adapter
from sandbox.standins import ADAPTER, CHECKPOINT, ENCODER
from sandbox.workflow import EXAMPLES, TEXT_TO_IMAGE, example_workflows, read_workflow

pytest.importorskip("playwright.sync_api", reason="NO PLAYWRIGHT: tests in a browser need it.")

LANGUAGES = ("en", "de", "es", "fr", "ja", "ko", "zh")
CLASSIC_IN_ENGLISH = {"Comfy.VueNodes.Enabled": False, "Comfy.Locale": "en"}
VUE_IN_CHINESE = {"Comfy.VueNodes.Enabled": True, "Comfy.Locale": "zh"}
LOADERS = {"LLM4GEN_LoadLLMEncoder": "text_encoders", "LLM4GEN_LoadCrossAdapter": "llm4gen"}
MESSAGES = "async () => (await import('/extensions/llm4gen/texts.js')).TEXTS"
LISTED = "([id, file]) => app.graph.getNodeById(id).widgets[0].options.values.includes(file)"
NOTED = "(id) => app.graph.getNodeById(id).widgets.find((w) => w.name === 'llm4gen_note').element.querySelector('p')"
MARKED = f"([one, other]) => {{ const marked = ({FAULTY})(); return marked.includes(one) && !marked.includes(other); }}"
HAS = "([id, name, value]) => app.graph.getNodeById(id).widgets.find((w) => w.name === name).value === value"
EVERY_LOADER = EXAMPLES / "llm4gen_carry_to_another_checkpoint.json"  # but those of a ControlNet and a LoRA
# The rows of the panel of missing models: name, folder, and what Download would open or else the link gives.
MISSING_MODELS = """async () => {
  const opened = [], copied = [];
  HTMLAnchorElement.prototype.click = function () { opened.push(this.href); };
  navigator.clipboard.writeText = async (text) => { copied.push(text); };
  const rows = [...document.querySelector("[data-testid=missing-model-importable-rows]").children];
  const found = [];
  for (const row of rows) {
    const [name, folder] = row.innerText.split("\\n");
    const download = row.querySelector("[data-testid=missing-model-download]");
    (download ?? row.querySelector("button:has([class*=link])")).click();
    const given = download ? opened : copied;
    while (!given.length) await new Promise((resolve) => setTimeout(resolve, 50));
    found.push([name, folder, (download ? "" : "link ") + given.pop()]);
  }
  return found;
}"""
LISTS = """(files) => {
  const rows = document.querySelector("[data-testid=missing-model-importable-rows]")?.children ?? [];
  return [...rows].map((row) => row.innerText.split("\\n")[0]).sort().join() === files.join();
}"""
HEIGHT = """(id) => {
  const node = app.graph.getNodeById(id);
  return [node.computeSize()[1], node.size[1], node.widgets.length];
}"""

# Functions for the plainest example: `set`, which sets a widget; `train`, which adds a Training Set, with a New
# Cross-Adapter for SDXL and with a loader of LoRAs between it and the checkpoint, and returns the Training Set's id.
CONNECTED = """var set = (id, name, value) => {
  app.graph.getNodeById(id).widgets.find((widget) => widget.name === name).value = value;
}, train = () => {
  const [lora, adapter, data] = ["LoraLoader", "LLM4GEN_NewCrossAdapter", "LLM4GEN_TrainingSet"].map((type) =>
    app.graph.add(LiteGraph.createNode(type)));
  app.graph.getNodeById(1).connect(1, lora, "clip");
  lora.connect(1, data, "clip");
  adapter.connect(0, data, "adapter");
  set(adapter.id, "context_width", 2048);
  return data.id;
}"""

# Feeds a node's CLIP from a new loader, such as other packs have. widgets: name → value. linked: the types of inputs
# into which the plainest example's checkpoint feeds its CLIP.
FED = """([id, widgets, linked]) => {
  const loader = new LiteGraph.LGraphNode("Another pack's");
  for (const [name, value] of Object.entries(widgets)) {
    loader.addWidget("combo", name, value, null, { values: [value] });
  }
  loader.addOutput("CLIP", "CLIP");
  app.graph.add(loader);
  for (const type of linked) {
    loader.addInput(`override ${type}`, type);
    app.graph.getNodeById(1).connect(1, loader, loader.inputs.length - 1);
  }
  loader.connect(0, app.graph.getNodeById(id), "clip");
}"""
# Adds a node, with one more widget as the loaders of some packs have it.
BRINGS = """([type, widget]) => {
  const node = app.graph.add(LiteGraph.createNode(type));
  if (widget) node.addWidget("combo", widget, "a.safetensors", null, { values: ["a.safetensors"] });
}"""
UNCERTAIN = [  # loaders whose CLIP may be another than the checkpoint's
    ({"ckpt_name": CHECKPOINT, "clip_name": "clip_l.safetensors"}, []),
    ({"ckpt_name": CHECKPOINT, "refiner_ckpt_name": "None"}, []),
    ({"ckpt_name": CHECKPOINT}, ["CLIP"]),
    ({"ckpt_name": {"content": CHECKPOINT}}, []),
    ({}, ["CLIP", "*"]),
]
# Two New Cross-Adapters that feed each other, of which one feeds a Training Set; what is said under it.
CIRCLE = """async () => {
  const [one, other, data] = ["LLM4GEN_NewCrossAdapter", "LLM4GEN_NewCrossAdapter", "LLM4GEN_TrainingSet"].map((type) =>
    app.graph.add(LiteGraph.createNode(type)));
  app.graph.getNodeById(1).connect(1, data, "clip");
  one.connect(0, other, "start_from");
  other.connect(0, one, "start_from");
  other.connect(0, data, "adapter");
  const { otherKind } = await import("/extensions/llm4gen/advice.js");
  return [one, other].every((node) => node.isInputConnected(node.findInputSlot("start_from"))) &&
    otherKind(data, { adapters: [], kinds: {} }, {});
}"""

# Loads a graph and waits until all notes are shown and no node grows any more. Returns what each node covers, as
# [its type and id, left, top, right, bottom] in the graph's units.
COVERED = """async (workflow) => {
  await app.loadGraphData(workflow);
  const { canvas, ds } = app.canvas;
  const covered = () => app.graph.nodes.map((node) => {
    const drawn = document.querySelector(`[data-node-id="${node.id}"]`)?.getBoundingClientRect();
    const { pos: [left, top], size: [width, height] } = node; // getBounding() may be out of date
    const title = LiteGraph.NODE_TITLE_HEIGHT;
    if (!drawn) return [`${node.type} ${node.id}`, left, top - title, left + width, top + height];
    const { x, y } = canvas.getBoundingClientRect();
    const corner = (right, down) => ds.convertCanvasToOffset([right - x, down - y]);
    return [`${node.type} ${node.id}`, ...corner(drawn.left, drawn.top), ...corner(drawn.right, drawn.bottom)];
  });
  const hasNote = (node) =>
    ["LLM4GEN_LoadLLMEncoder", "LLM4GEN_LoadCrossAdapter", "LLM4GEN_Conditioning"].includes(node.type) ||
    (node.type === "CLIPTextEncode" && node.getInputNode(0).type === "LLM4GEN_ApplyToCLIP");
  const allNoted = () => app.graph.nodes.filter(hasNote).every((n) => n.widgets.some((w) => w.name === "llm4gen_note"));
  let before, now = "", wasNoted;
  do {
    [before, wasNoted] = [now, allNoted()]; // a note grows its node only in one of the next frames
    await new Promise((resolve) => setTimeout(() => requestAnimationFrame(() => requestAnimationFrame(resolve)), 150));
    now = JSON.stringify(covered());
  } while (now !== before || !wasNoted);
  return covered();
}"""


@pytest.fixture(scope="module")
def page(server, browser):
    with first_page(server.url, browser, **CLASSIC_IN_ENGLISH) as page:
        yield page


@pytest.fixture(scope="module", params=[CLASSIC_IN_ENGLISH, VUE_IN_CHINESE], ids=["classic", "vue"])
def empty(request, page, empty_server):
    """The front end of a server without models, in English and in Chinese, with both kinds of nodes."""
    settings = {"Comfy.TutorialCompleted": True, **request.param}  # this server has no saved settings
    with fresh_page(page, empty_server.url, **settings) as fresh:
        fresh.messages = fresh.evaluate(MESSAGES)[request.param["Comfy.Locale"]]
        yield fresh


@pytest.fixture
def empty_page(empty):
    """The front end of a server without models, with the plainest example open."""
    empty.evaluate("app.graph.clear()")
    drop(empty, TEXT_TO_IMAGE, read_workflow(TEXT_TO_IMAGE)["id"])
    return empty


@pytest.fixture
def nodes(page):
    """Opens the plainest example with the stand-ins chosen; the ids of its nodes, by type."""
    page.unroute("**/llm4gen/checkpoint")  # a test that failed may have left it
    page.evaluate("app.graph.clear()")
    drop(page, TEXT_TO_IMAGE, read_workflow(TEXT_TO_IMAGE)["id"])
    nodes = {type: page.evaluate(FIND, type)[0] for type in (*LOADERS, "LLM4GEN_Conditioning")}
    page.evaluate(SET, [nodes["LLM4GEN_LoadLLMEncoder"], "encoder_name", ENCODER])
    page.evaluate(SET, [nodes["LLM4GEN_LoadCrossAdapter"], "adapter_name", ADAPTER])
    return nodes


@pytest.fixture
def put_adapter(models, page, nodes):
    """A function that writes an adapter file, presses R and chooses the file unless told not to.

    The file is removed after the test.
    """
    folder = models / "llm4gen"
    folder.mkdir(exist_ok=True)
    written = []

    def put(name, write, choose=True):
        write(folder / name)
        written.append(folder / name)
        loader = nodes["LLM4GEN_LoadCrossAdapter"]
        refresh(page)
        page.wait_for_function(LISTED, arg=[loader, name])
        if choose:
            page.evaluate(SET, [loader, "adapter_name", name])

    yield put
    for file in written:
        file.unlink()


@pytest.mark.parametrize(("loader", "folder"), LOADERS.items())
def test_a_loader_without_files_says_which_file_it_needs(empty_page, empty_client, loader, folder):
    wanted = empty_client.get("/llm4gen/report")["advice"][folder]
    (node,) = empty_page.evaluate(FIND, loader)
    line = empty_page.messages["empty"].replace("{wanted}", wanted)
    says(empty_page, node, line)
    empty_page.get_by_text(line, exact=True).wait_for()


@pytest.mark.parametrize("file", example_workflows(), ids=lambda file: file.stem)
def test_no_node_of_an_example_covers_another_with_all_notes_shown(file, empty):
    nodes = empty.evaluate(COVERED, read_workflow(file))
    overlaps = [
        (one, other)
        for (one, *a), (other, *b) in combinations(nodes, 2)
        if a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
    ]
    assert overlaps == []


def test_prompts_are_counted_without_models(empty_page):
    """The tokens are counted as with the published files."""
    node = empty_page.evaluate(FIND, "LLM4GEN_Conditioning")[0]
    empty_page.evaluate(SET, [node, "text", "cat " * 75 + "zebra"])
    count, line = noted(empty_page, node, 2)
    assert re.fullmatch(r"CLIP 76/75 · LLM \d+/256", count)
    sentence = empty_page.messages["cut"]
    assert line == sentence.replace("{half}", "CLIP").replace("{words}", "\u2068zebra\u2069")


def test_every_language_has_all_messages_with_the_same_placeholders(empty):
    """This includes languages that this front end does not offer yet, such as German."""
    placeholders = {
        language: {name: sorted(re.findall(r"{\w+}", text)) for name, text in messages.items()}
        for language, messages in empty.evaluate(MESSAGES).items()
    }
    assert placeholders == dict.fromkeys(LANGUAGES, placeholders["en"])


def test_a_damaged_file_is_named_under_its_loader_until_another_is_chosen(page, nodes, put_adapter, client):
    loader = nodes["LLM4GEN_LoadCrossAdapter"]
    before = page.evaluate(HEIGHT, loader)
    put_adapter("damaged.safetensors", lambda path: path.write_bytes(b"no weights"))
    (error,) = [
        adapter["error"]
        for adapter in client.get("/llm4gen/report")["adapters"]
        if adapter["name"] == "damaged.safetensors"
    ]
    assert "damaged.safetensors" in error
    says(page, loader, error)
    page.wait_for_function(f"([id, high]) => ({HEIGHT})(id)[1] > high", arg=[loader, before[1]])
    page.evaluate(SET, [loader, "adapter_name", ADAPTER])
    page.wait_for_function(f"(id) => ({NOTE})(id) === null", arg=loader)
    # Otherwise the workflow would be saved with the height of the note.
    assert page.evaluate(HEIGHT, loader) == before


def test_an_encoder_and_an_adapter_that_do_not_fit_are_reported_before_the_run(page, nodes, put_adapter):
    tensors = {name: tensor.half() for name, tensor in cross_adapter().items()}
    tensors["CrossFusionModule.0.llm_proj.weight"] = torch.zeros(768, 64).half()
    put_adapter("for_another.safetensors", lambda path: save_file(tensors, path))
    node = nodes["LLM4GEN_Conditioning"]
    line, count = noted(page, node, 2)
    assert line == f"for_another.safetensors was not trained with {ENCODER}: they do not fit each other."
    assert count.startswith("CLIP ")
    page.evaluate(SET, [nodes["LLM4GEN_LoadCrossAdapter"], "adapter_name", ADAPTER])
    says(page, node, count)


def test_an_llm_that_may_not_be_the_adapters_is_reported_before_the_run(page, nodes, put_adapter):
    """As a warning where it certainly is not. The sentences are those of the log."""
    tensors = {name: tensor.half() for name, tensor in cross_adapter().items()}
    node, entry = nodes["LLM4GEN_Conditioning"], {"name": "mine.gguf", "sha256_of_ends": "of mine"}
    for found, sizes in {OTHER_FILE: {}, OTHER_LLM: {"layers": 24}}.items():
        metadata = {"llm4gen_training": json.dumps({"llm": entry | sizes})}
        put_adapter(f"{found}.safetensors", partial(save_file, tensors, metadata=metadata))
        words = {"adapter": f"{found}.safetensors", "llm": "mine.gguf", "encoder": ENCODER}
        line, count = noted(page, node, 2)
        assert line == SENTENCES[found].format(**words) and count.startswith("CLIP ")
        tone = page.evaluate(f"(id) => ({NOTED})(id).className", node)
        assert tone == ("warning" if found == OTHER_LLM else "")
        page.evaluate(SET, [nodes["LLM4GEN_LoadCrossAdapter"], "adapter_name", ADAPTER])
        says(page, node, count)


def test_an_adapter_and_a_checkpoint_of_another_kind_are_reported_before_the_run(page, nodes, put_adapter):
    """Through a loader of LoRAs too. A new adapter is told the width that it needs."""
    put_adapter("for_sdxl.safetensors", partial(save_file, tiny.adapter_tensors(clip=2048, llm=2048)))
    node = nodes["LLM4GEN_Conditioning"]
    page.evaluate(f"{CONNECTED}; set(1, 'ckpt_name', '{CHECKPOINT}')")
    line, count = noted(page, node, 2)
    assert line == f"for_sdxl.safetensors is for SDXL, but {CHECKPOINT} is SD1.5: they do not fit each other."
    training = page.evaluate(f"{CONNECTED}; train()")
    says(page, training, f"{CHECKPOINT} is SD1.5: set context_width of New Cross-Adapter to 768.")
    page.evaluate(
        f"{CONNECTED}; app.graph.nodes.at(-2).widgets.find((w) => w.name === 'context_width').value = 768"
    )
    page.wait_for_function(NO_NOTE, arg=training)
    page.evaluate(SET, [nodes["LLM4GEN_LoadCrossAdapter"], "adapter_name", ADAPTER])
    says(page, node, count)


def test_nothing_is_said_of_a_checkpoint_while_its_kind_is_unknown(page, nodes, put_adapter):
    put_adapter("for_sdxl.safetensors", partial(save_file, tiny.adapter_tensors(clip=2048, llm=2048)))
    node, held = nodes["LLM4GEN_Conditioning"], []

    def is_other(asked):
        return asked.request.post_data_json != {"checkpoint": "sdxl.safetensors"}

    def hold(asked):
        asked.continue_() if is_other(asked) else held.append(asked)

    def answer_sd2(asked):
        asked.continue_() if is_other(asked) else asked.fulfill(json={"width": 1024, "kind": "SD2"})

    page.evaluate(f"{CONNECTED}; set(1, 'ckpt_name', '{CHECKPOINT}')")
    count = noted(page, node, 2)[1]
    page.route("**/llm4gen/checkpoint", hold)
    with page.expect_request("**/llm4gen/checkpoint"):
        page.evaluate(f"{CONNECTED}; set(1, 'ckpt_name', 'sdxl.safetensors')")
    says(page, node, count)
    page.keyboard.press("r")  # with each report the page asks again
    while not held:  # the browser tells of a request before it hands it over
        page.wait_for_timeout(20)
    # More than one request may be held, and more may follow.
    page.route("**/llm4gen/checkpoint", answer_sd2)
    for asked in held:
        answer_sd2(asked)
    line = "for_sdxl.safetensors is for SDXL, but sdxl.safetensors is SD2: they do not fit each other."
    says(page, node, line, count)
    held.clear()
    page.route("**/llm4gen/checkpoint", hold)
    refresh(page)
    while not held:
        assert noted(page, node, 2) == [line, count], "until the next answer, the last one counts"
        page.wait_for_timeout(20)
    page.unroute("**/llm4gen/checkpoint")


def test_nothing_is_said_of_a_checkpoint_whose_clip_may_not_be_the_one_in_use(page, nodes, put_adapter):
    """Each time after a loader of which it is said."""
    put_adapter("for_sdxl.safetensors", partial(save_file, tiny.adapter_tensors(clip=2048, llm=2048)))
    node = nodes["LLM4GEN_Conditioning"]
    page.evaluate(f"{CONNECTED}; set(1, 'ckpt_name', '{CHECKPOINT}')")
    for widgets, linked in UNCERTAIN:
        page.evaluate(FED, [node, {"ckpt_name": CHECKPOINT, "vae_name": "x", "clip_skip": -1}, ["MODEL"]])
        line, count = noted(page, node, 2)
        assert line.startswith(f"for_sdxl.safetensors is for SDXL, but {CHECKPOINT} is SD1.5")
        page.evaluate(FED, [node, widgets, linked])
        says(page, node, count)


def test_a_circle_of_new_adapters_ends_no_advice(page, nodes):
    assert page.evaluate(CIRCLE) == []


def test_an_adapter_says_what_it_was_trained_with_and_warns_where_the_graph_cannot_have_it(
    page, nodes, put_adapter
):
    tensors = {name: tensor.half() for name, tensor in cross_adapter().items()}
    loader, tone = nodes["LLM4GEN_LoadCrossAdapter"], f"(id) => ({NOTED})(id).className"
    lines = page.evaluate(MESSAGES)["en"]
    entries = {"lora": {"lora": "digest"}, "patches": {"base_is_patched": True}, "unet": {"unet": "digest"}}
    for needed, entry in entries.items():
        metadata = {"llm4gen_training": json.dumps(entry)}
        put_adapter(f"with_{needed}.safetensors", partial(save_file, tensors, metadata=metadata))
        says(page, loader, lines[f"needs_{needed}"])
        assert page.evaluate(tone, loader) == ("" if needed == "unet" else "warning")
        for widget, brings in ((None, "LoraLoaderModelOnly"), ("lora_name", "CheckpointLoaderSimple")):
            page.evaluate(BRINGS, [brings, widget])
            page.wait_for_function(f"(id) => ({tone})(id) === ''", arg=loader)
            page.evaluate("app.graph.remove(app.graph.nodes.at(-1))")
            expected = "" if needed == "unet" else "warning"
            page.wait_for_function(f"([id, tone]) => ({tone})(id) === tone", arg=[loader, expected])
    page.evaluate(SET, [loader, "adapter_name", ADAPTER])
    page.wait_for_function(NO_NOTE, arg=loader)


@pytest.mark.parametrize("settings", [CLASSIC_IN_ENGLISH, VUE_IN_CHINESE], ids=["classic", "vue"])
def test_with_a_server_without_our_routes_the_page_shows_no_notes_and_sends_one_request(
    page, server, settings
):
    """Such a server answers 404. R asks again."""
    with page.context.browser.new_page(viewport=page.viewport_size) as fresh:
        prefer(fresh, settings)
        fresh.urls = []
        fresh.on("request", lambda request: fresh.urls.append(request.url))
        fresh.route("**/llm4gen/report", lambda route: route.fulfill(status=404, body="404: Not Found"))
        ready(fresh, server.url)
        drop(fresh, TEXT_TO_IMAGE, read_workflow(TEXT_TO_IMAGE)["id"])
        before = [fresh.evaluate(HEIGHT, node) for node in fresh.evaluate("app.graph.nodes.map((n) => n.id)")]
        let_pass(fresh, 1000)
        after = [fresh.evaluate(HEIGHT, node) for node in fresh.evaluate("app.graph.nodes.map((n) => n.id)")]
        assert before == after
        assert fresh.locator(".llm4gen-note").count() == 0
        assert [url for url in fresh.urls if "/llm4gen/" in url and "/api/" in url] == [
            f"{server.url}/api/llm4gen/report"
        ]
        assert_no_warnings(fresh)
        fresh.unroute("**/llm4gen/report")
        refresh(fresh)
        fresh.locator(".llm4gen-note").first.wait_for()


def test_the_panel_of_missing_models_downloads_a_file_or_links_the_page_that_has_it(empty):
    """A download must bring the file under the name that the workflow has for it; what must be made is linked."""
    empty.evaluate("app.graph.clear()")
    drop(empty, EVERY_LOADER, read_workflow(EVERY_LOADER)["id"])
    empty.get_by_test_id("error-overlay-see-errors").click()
    wanted = {
        "v1-5-pruned-emaonly-fp16.safetensors": (
            "checkpoints",
            "https://huggingface.co/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/"
            "v1-5-pruned-emaonly-fp16.safetensors",
        ),
        "dreamshaper_8.safetensors": ("checkpoints", "https://civitai.com/api/download/models/128713"),
        "projector.pth": (
            "llm4gen",
            "https://huggingface.co/Shui-VL/LLM4GEN-models/resolve/main/projector.pth",
        ),
        "llm4gen_sd15_unet.safetensors": (
            "diffusion_models",
            "link https://hf.co/Shui-VL/LLM4GEN-models/tree/main/unet",
        ),
        "rankgen-t5-xl-all-bf16.safetensors": (
            "text_encoders",
            "link https://hf.co/kalpeshk2011/rankgen-t5-xl-all",
        ),
    }
    # For a moment, the panel may show the files of the graph before.
    empty.wait_for_function(LISTS, arg=sorted(wanted))
    empty.get_by_test_id("missing-model-download-all").wait_for()
    assert {name: tuple(rest) for name, *rest in empty.evaluate(MISSING_MODELS)} == wanted


def test_without_the_pack_the_page_names_it(page, empty_server):
    """Such a server lists neither our nodes nor our scripts."""
    with page.context.browser.new_page(viewport=page.viewport_size) as fresh:
        prefer(fresh, {"Comfy.TutorialCompleted": True, **CLASSIC_IN_ENGLISH})
        answer(fresh, r"/object_info$", lambda nodes: {n: i for n, i in nodes.items() if "LLM4GEN" not in n})
        answer(fresh, r"/extensions$", lambda files: [file for file in files if "/llm4gen/" not in file])
        ready(fresh, empty_server.url)
        drop(fresh, TEXT_TO_IMAGE, read_workflow(TEXT_TO_IMAGE)["id"])
        ours = [n for n in read_workflow(TEXT_TO_IMAGE)["nodes"] if n["type"].startswith("LLM4GEN_")]
        assert sorted(fresh.evaluate(UNREGISTERED)) == sorted(n["type"] for n in ours)
        fresh.get_by_test_id("error-overlay-see-errors").click()
        pack = fresh.get_by_test_id("missing-node-card").get_by_role("button", name="llm4gen", exact=True)
        pack.click()
        fresh.get_by_test_id("missing-node-card").get_by_text(ours[0]["type"], exact=True).wait_for()
        count = fresh.get_by_test_id("missing-node-pack-count")
        assert count.inner_text() == str(len(ours)) and fresh.get_by_text("Unknown pack").count() == 0


def answer(page, route, change):
    """Changes what the server answers to this page."""
    page.route(re.compile(route), lambda asked: asked.fulfill(json=change(asked.fetch().json())))


@pytest.mark.parametrize("opened", [True, False], ids=["opened", "refreshed"])
def test_a_workflow_that_names_the_published_adapter_takes_its_converted_copy(
    opened, page, nodes, put_adapter
):
    loader = nodes["LLM4GEN_LoadCrossAdapter"]
    page.evaluate(SET, [loader, "adapter_name", "projector.pth"])
    if opened:
        put_adapter("projector.safetensors", lambda path: save_file(cross_adapter(), path))
        page.evaluate("app.graph.clear()")
        drop(page, TEXT_TO_IMAGE, read_workflow(TEXT_TO_IMAGE)["id"])
    else:
        put_adapter("projector.safetensors", lambda path: save_file(cross_adapter(), path), choose=False)
    page.wait_for_function(HAS, arg=[loader, "adapter_name", "projector.safetensors"])
    # The checkpoint is missing in any case, and the front end marks all loaders of missing files at once.
    page.wait_for_function(MARKED, arg=["CheckpointLoaderSimple", "LLM4GEN_LoadCrossAdapter"])

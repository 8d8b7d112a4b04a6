"""What the real front end says of the files before anything is run: none there, unfit ones, two that do not fit."""

import re
from itertools import combinations

import pytest
import torch
from safetensors.torch import save_file

from front_end import (
    FIND,
    NOTE,
    SET,
    assert_no_warnings,
    drop,
    first_page,
    fresh_page,
    prefer,
    ready,
    says,
)
from sandbox.standin_models import cross_adapter
from sandbox.standins import ADAPTER, ENCODER
from sandbox.workflow import TEXT_TO_IMAGE, example_workflows, read_workflow

pytest.importorskip("playwright.sync_api", reason="NO PLAYWRIGHT: the browser is not driven.")

LANGUAGES = ("en", "de", "es", "fr", "ja", "ko", "zh")
CLASSIC_IN_ENGLISH = {"Comfy.VueNodes.Enabled": False, "Comfy.Locale": "en"}
VUE_IN_CHINESE = {"Comfy.VueNodes.Enabled": True, "Comfy.Locale": "zh"}
LOADERS = {"LLM4GEN_LoadLLMEncoder": "text_encoders", "LLM4GEN_LoadCrossAdapter": "llm4gen"}
TEXTS = "async () => (await import('/extensions/llm4gen/texts.js')).TEXTS"
LISTED = "([id, file]) => app.graph.getNodeById(id).widgets[0].options.values.includes(file)"
HEIGHT = """(id) => {
  const node = app.graph.getNodeById(id);
  return [node.computeSize()[1], node.size[1], node.widgets.length];
}"""

# Loads a graph, waits until all is said under its nodes and none grows any more: what each node covers, as
# [its type and id, left, top, right, bottom] in the graph's units.
COVERED = """async (workflow) => {
  await app.loadGraphData(workflow);
  const { canvas, ds } = app.canvas;
  const covered = () => app.graph.nodes.map((node) => {
    const drawn = document.querySelector(`[data-node-id="${node.id}"]`)?.getBoundingClientRect();
    const { pos: [left, top], size: [width, height] } = node; // getBounding() may tell a former size
    const title = LiteGraph.NODE_TITLE_HEIGHT;
    if (!drawn) return [`${node.type} ${node.id}`, left, top - title, left + width, top + height];
    const { x, y } = canvas.getBoundingClientRect();
    const corner = (right, down) => ds.convertCanvasToOffset([right - x, down - y]);
    return [`${node.type} ${node.id}`, ...corner(drawn.left, drawn.top), ...corner(drawn.right, drawn.bottom)];
  });
  const speaks = (node) =>
    ["LLM4GEN_LoadLLMEncoder", "LLM4GEN_LoadCrossAdapter", "LLM4GEN_Conditioning"].includes(node.type) ||
    (node.type === "CLIPTextEncode" && node.getInputNode(0).type === "LLM4GEN_ApplyToCLIP");
  const said = () => app.graph.nodes.filter(speaks).every((n) => n.widgets.some((w) => w.name === "llm4gen_note"));
  let before, now = "";
  do {
    before = now;
    await new Promise((resolve) => setTimeout(resolve, 150));
    now = JSON.stringify(covered());
  } while (now !== before || !said());
  return covered();
}"""


@pytest.fixture(scope="module")
def page(server, browser):
    with first_page(server.url, browser, **CLASSIC_IN_ENGLISH) as page:
        yield page


@pytest.fixture(scope="module", params=[CLASSIC_IN_ENGLISH, VUE_IN_CHINESE], ids=["classic", "vue"])
def empty(request, page, empty_server):
    """The front end where no model is."""
    settings = {"Comfy.TutorialCompleted": True, **request.param}  # that server knows of no one's settings
    with fresh_page(page, empty_server.url, **settings) as fresh:
        fresh.words = fresh.evaluate(TEXTS)[request.param["Comfy.Locale"]]
        yield fresh


@pytest.fixture
def empty_page(empty):
    """With the plainest example in it."""
    empty.evaluate("app.graph.clear()")
    drop(empty, TEXT_TO_IMAGE, read_workflow(TEXT_TO_IMAGE)["id"])
    return empty


@pytest.fixture
def nodes(page):
    """The ids of the plainest example's nodes, by type, opened anew with the stand-ins chosen."""
    page.evaluate("app.graph.clear()")
    drop(page, TEXT_TO_IMAGE, read_workflow(TEXT_TO_IMAGE)["id"])
    nodes = {type: page.evaluate(FIND, type)[0] for type in (*LOADERS, "LLM4GEN_Conditioning")}
    page.evaluate(SET, [nodes["LLM4GEN_LoadLLMEncoder"], "encoder_name", ENCODER])
    page.evaluate(SET, [nodes["LLM4GEN_LoadCrossAdapter"], "adapter_name", ADAPTER])
    return nodes


@pytest.fixture
def put_adapter(models, page, nodes):
    """Puts a file among the adapters, presses R and chooses it; it is gone after the test."""
    folder = models / "llm4gen"
    folder.mkdir(exist_ok=True)
    written = []

    def put(name, write):
        write(folder / name)
        written.append(folder / name)
        loader = nodes["LLM4GEN_LoadCrossAdapter"]
        page.mouse.move(1400, 900)
        page.keyboard.press("r")
        page.wait_for_function(LISTED, arg=[loader, name])
        page.evaluate(SET, [loader, "adapter_name", name])

    yield put
    for file in written:
        file.unlink()


@pytest.mark.parametrize(("loader", "folder"), LOADERS.items())
def test_an_empty_list_is_explained(empty_page, empty_client, loader, folder):
    wanted = empty_client.get("/llm4gen/report")["advice"][folder]
    (node,) = empty_page.evaluate(FIND, loader)
    line = empty_page.words["empty"].replace("{wanted}", wanted)
    says(empty_page, node, line)
    empty_page.get_by_text(line, exact=True).wait_for()


@pytest.mark.parametrize("file", example_workflows(), ids=lambda file: file.stem)
def test_no_node_covers_another_with_all_that_is_said_under_them(file, empty):
    nodes = empty.evaluate(COVERED, read_workflow(file))
    over = [
        (one, other)
        for (one, *a), (other, *b) in combinations(nodes, 2)
        if a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
    ]
    assert over == []


def test_prompts_are_counted_where_no_model_is(empty_page):
    """As the published files would have it."""
    node = empty_page.evaluate(FIND, "LLM4GEN_Conditioning")[0]
    empty_page.evaluate(SET, [node, "text", "cat " * 75 + "zebra"])
    empty_page.wait_for_function(f"(id) => ({NOTE})(id)?.length === 2", arg=node)
    count, line = empty_page.evaluate(NOTE, node)
    assert re.fullmatch(r"CLIP 76/75 · LLM \d+/256", count)
    assert line == empty_page.words["cut"].replace("{half}", "CLIP").replace("{words}", "\u2068zebra\u2069")


def test_every_language_says_all_of_it(empty):
    """Also those that this front end does not offer yet, such as German."""
    blanks = {
        language: {name: sorted(re.findall(r"{\w+}", text)) for name, text in sentences.items()}
        for language, sentences in empty.evaluate(TEXTS).items()
    }
    assert blanks == dict.fromkeys(LANGUAGES, blanks["en"])


def test_a_file_that_cannot_be_used_is_named(page, nodes, put_adapter, client):
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
    # Else the workflow would be saved with the room for the note.
    assert page.evaluate(HEIGHT, loader) == before


def test_two_that_do_not_fit_are_told_apart_before_they_are_run(page, nodes, put_adapter):
    for_another = {name: tensor.half() for name, tensor in cross_adapter().items()}
    for_another["CrossFusionModule.0.llm_proj.weight"] = torch.zeros(768, 64).half()
    put_adapter("for_another.safetensors", lambda path: save_file(for_another, path))
    node = nodes["LLM4GEN_Conditioning"]
    page.wait_for_function(f"(id) => ({NOTE})(id)?.length === 2", arg=node)
    line, count = page.evaluate(NOTE, node)
    assert line == f"for_another.safetensors was not trained with {ENCODER}: they do not fit each other."
    assert count.startswith("CLIP ")
    page.evaluate(SET, [nodes["LLM4GEN_LoadCrossAdapter"], "adapter_name", ADAPTER])
    says(page, node, count)


@pytest.mark.parametrize("settings", [CLASSIC_IN_ENGLISH, VUE_IN_CHINESE], ids=["classic", "vue"])
def test_a_server_without_the_routes_shows_nothing_and_hears_nothing(page, server, settings):
    """It answers such a request with its own 404, as an older one does."""
    with page.context.browser.new_page(viewport=page.viewport_size) as fresh:
        prefer(fresh, settings)
        fresh.asked = []
        fresh.on("request", lambda request: fresh.asked.append(request.url))
        fresh.route("**/llm4gen/report", lambda route: route.fulfill(status=404, body="404: Not Found"))
        ready(fresh, server.url)
        drop(fresh, TEXT_TO_IMAGE, read_workflow(TEXT_TO_IMAGE)["id"])
        before = [fresh.evaluate(HEIGHT, node) for node in fresh.evaluate("app.graph.nodes.map((n) => n.id)")]
        fresh.wait_for_timeout(1000)
        after = [fresh.evaluate(HEIGHT, node) for node in fresh.evaluate("app.graph.nodes.map((n) => n.id)")]
        assert before == after
        assert fresh.locator(".llm4gen-note").count() == 0
        assert [url for url in fresh.asked if "/llm4gen/" in url and "/api/" in url] == [
            f"{server.url}/api/llm4gen/report"
        ]
        assert_no_warnings(fresh)

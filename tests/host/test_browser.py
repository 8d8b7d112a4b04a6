"""The example workflow in the real front end: dropped on the canvas, set up by hand, run, and looked at."""

import re
from contextlib import suppress

import pytest
import standins
from picture import open_page, wait_for_canvas
from workflow import TEXT_TO_IMAGE, read_workflow, to_prompt

playwright = pytest.importorskip("playwright.sync_api", reason="NO PLAYWRIGHT: the browser is not driven.")

LOADERS = {
    "CheckpointLoaderSimple": ("ckpt_name", standins.CHECKPOINT),
    "LLM4GEN_LoadLLMEncoder": ("encoder_name", standins.ENCODER),
    "LLM4GEN_LoadCrossAdapter": ("adapter_name", standins.ADAPTER),
}
SMALL = (("EmptyLatentImage", "width", 64), ("EmptyLatentImage", "height", 64), ("KSampler", "steps", 2))

DROP = """(text) => {
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([text], "llm4gen_text_to_image.json", { type: "application/json" }));
  return dataTransfer;
}"""
# The middle of a widget, in the page's pixels: where one clicks to change it.
WIDGET = """([type, name]) => {
  const node = app.graph.nodes.find((n) => n.type === type);
  const widget = node.widgets.find((w) => w.name === name);
  const canvas = app.canvas.canvas.getBoundingClientRect();
  const middle = [node.pos[0] + node.size[0] / 2, node.pos[1] + (widget.last_y ?? widget.y) + 10];
  const [x, y] = app.canvas.ds.convertOffsetToCanvas(middle);
  return [canvas.x + x, canvas.y + y];
}"""
VALUE = "([type, name]) => app.graph.nodes.find((n) => n.type === type).widgets.find((w) => w.name === name).value"
FAULTY = "() => app.graph.nodes.filter((n) => n.has_errors).map((n) => n.type).sort()"
PICTURE = """() => {
  const [image] = app.graph.nodes.find((n) => n.type === "SaveImage").imgs ?? [];
  return image?.complete && image.naturalWidth ? [image.naturalWidth, image.naturalHeight] : null;
}"""


@pytest.fixture
def page(server, browser):
    with open_page(server.url, browser) as page:
        page.complaints = []
        page.on("pageerror", lambda error: page.complaints.append(f"uncaught: {error}"))
        page.on("console", lambda m: page.complaints.append(m.text) if m.type == "error" else None)
        wait_for_canvas(page, server.url)
        # The front end itself asks for files that a fresh user does not have; the pack's part starts here.
        page.wait_for_load_state("networkidle")
        ours = [text for text in page.complaints if re.search("llm4gen|uncaught", text, re.IGNORECASE)]
        assert ours == []
        page.complaints.clear()
        drop(page)
        yield page


@pytest.fixture
def look(page, tmp_path):
    """Leaves a screenshot in the test's own folder, for whoever wants to see."""
    yield
    page.screenshot(path=tmp_path / "page.png")


@pytest.mark.usefixtures("look")
def test_the_dropped_file_is_what_demo_submits(page, client):
    shown = page.evaluate("async () => (await app.graphToPrompt()).output")
    assert shown == to_prompt(read_workflow(TEXT_TO_IMAGE), client.object_info())


@pytest.mark.usefixtures("look")
def test_only_the_absent_files_are_marked(page):
    """The stand-ins have other names than the published weights; nothing else may be wrong with the graph."""
    assert page.evaluate(FAULTY) == sorted(LOADERS)
    unregistered = (
        "app.graph.nodes.filter((n) => !LiteGraph.registered_node_types[n.type]).map((n) => n.type)"
    )
    assert page.evaluate(unregistered) == []
    assert_no_warnings(page)


@pytest.mark.usefixtures("look")
def test_run_ends_with_the_picture_on_the_canvas(page, client):
    for node in LOADERS:
        choose(page, node)
    for node, name, number in SMALL:
        page.mouse.dblclick(*page.evaluate(WIDGET, [node, name]))
        page.locator(".graphdialog input").fill(str(number))
        page.keyboard.press("Enter")
        assert page.evaluate(VALUE, [node, name]) == number
    page.wait_for_function("!app.graph.nodes.some((n) => n.has_errors)")
    before = client.get("/history").keys()

    page.get_by_test_id("queue-button").click()
    page.wait_for_function(PICTURE, timeout=300_000)

    assert page.evaluate(PICTURE) == [64, 64]
    (run,) = client.get("/history").keys() - before
    assert client.get(f"/history/{run}")[run]["status"]["status_str"] == "success"
    assert page.evaluate("app.lastNodeErrors ?? app.lastExecutionError ?? null") is None
    assert page.evaluate(FAULTY) == []
    assert not page.get_by_test_id("error-overlay-see-errors").is_visible()
    assert_no_warnings(page)


@pytest.mark.usefixtures("look")
def test_a_missing_adapter_is_explained_where_people_look(page):
    choose(page, "CheckpointLoaderSimple")
    choose(page, "LLM4GEN_LoadLLMEncoder")
    page.get_by_test_id("queue-button").click()
    page.get_by_test_id("error-overlay-see-errors").click()
    advice = "To use this node, put LLM4GEN's projector.pth in ComfyUI/models/llm4gen, then refresh."
    page.get_by_text(advice).first.wait_for()


def drop(page):
    """Drops the workflow file on the canvas."""
    data = page.evaluate_handle(DROP, TEXT_TO_IMAGE.read_text(encoding="utf-8"))
    for event in ("dragover", "drop"):
        page.dispatch_event("#graph-canvas", event, {"dataTransfer": data, "clientX": 700, "clientY": 600})
    page.get_by_test_id(
        "error-overlay-see-errors"
    ).wait_for()  # opening it ends with the files that are absent


def choose(page, node):
    """Sets a loader's drop-down to the stand-in, by the mouse."""
    name, file = LOADERS[node]
    entry = page.locator(".litecontextmenu .litemenu-entry", has_text=file)
    for _ in range(20):  # a canvas that was just filled takes clicks only a moment later
        page.mouse.click(*page.evaluate(WIDGET, [node, name]))
        with suppress(playwright.TimeoutError):
            entry.wait_for(timeout=1000)
            break
    entry.click()
    assert page.evaluate(VALUE, [node, name]) == file


def assert_no_warnings(page):
    text = page.locator("body").inner_text().lower()
    assert [w for w in ("missing node", "missing input", "required input", "unknown node") if w in text] == []
    # The front end looks for the models of the workflow that it opens by itself, however late: not our graph's.
    assert [text for text in page.complaints if "/Comfy-Org/" not in text] == []

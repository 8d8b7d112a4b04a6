"""The text-to-image example works in the real front end: dropped on the canvas, set up by mouse and keyboard, run."""

import re
from contextlib import suppress

import pytest

from front_end import FAULTY, PROMPT, UNREGISTERED, assert_no_warnings, drop, first_page, run
from paths import ROOT
from sandbox import standins
from sandbox.workflow import TEXT_TO_IMAGE, read_workflow, to_prompt

playwright = pytest.importorskip("playwright.sync_api", reason="NO PLAYWRIGHT: tests in a browser need it.")

LOADERS = {
    "CheckpointLoaderSimple": ("ckpt_name", standins.CHECKPOINT),
    "LLM4GEN_LoadLLMEncoder": ("encoder_name", standins.ENCODER),
    "LLM4GEN_LoadCrossAdapter": ("adapter_name", standins.ADAPTER),
}
SMALL = (("EmptyLatentImage", "width", 64), ("EmptyLatentImage", "height", 64), ("KSampler", "steps", 2))

# The middle of a widget, in the page's pixels, where a click changes it.
WIDGET = """([type, name]) => {
  const node = app.graph.nodes.find((n) => n.type === type);
  const widget = node.widgets.find((w) => w.name === name);
  const canvas = app.canvas.canvas.getBoundingClientRect();
  const middle = [node.pos[0] + node.size[0] / 2, node.pos[1] + (widget.last_y ?? widget.y) + 10];
  const [x, y] = app.canvas.ds.convertOffsetToCanvas(middle);
  return [canvas.x + x, canvas.y + y];
}"""
VALUE = "([type, name]) => app.graph.nodes.find((n) => n.type === type).widgets.find((w) => w.name === name).value"
# Types a text into every prompt.
WRITE = """(text) => {
  for (const area of document.querySelectorAll("textarea.comfy-multiline-input")) {
    area.value = text;
    area.dispatchEvent(new Event("input", { bubbles: true }));
  }
}"""
PICTURE = """() => {
  const [image] = app.graph.nodes.find((n) => n.type === "SaveImage").imgs ?? [];
  return image?.complete && image.naturalWidth ? [image.naturalWidth, image.naturalHeight] : null;
}"""
# Makes a graph of one node; returns the middle of its title, in the page's pixels.
ONE_NODE = """(type) => {
  app.graph.clear();
  const node = LiteGraph.createNode(type);
  node.pos = [400, 200];
  app.graph.add(node);
  const canvas = app.canvas.canvas.getBoundingClientRect();
  const [x, y] = app.canvas.ds.convertOffsetToCanvas([node.pos[0] + node.size[0] / 2, node.pos[1] - 15]);
  return [canvas.x + x, canvas.y + y];
}"""
# Loads the pictures of a help page; returns of each the path, its own width and the width it is shown with.
PICTURES = """async (page) => {
  const pictures = [...page.querySelectorAll("img")];
  await Promise.all(pictures.map((picture) => picture.decode()));
  return pictures.map((picture) => [new URL(picture.src).pathname, picture.naturalWidth, picture.clientWidth]);
}"""


@pytest.fixture(scope="module")
def opened(server, browser):
    with first_page(server.url, browser) as page:
        yield page


@pytest.fixture
def page(opened):
    """The front end with the example just dropped on its canvas."""
    opened.evaluate("app.graph.clear()")
    opened.complaints.clear()
    drop(opened, TEXT_TO_IMAGE, read_workflow(TEXT_TO_IMAGE)["id"])
    # A workflow has been opened when the front end reports its missing files.
    opened.get_by_test_id("error-overlay-see-errors").wait_for()
    opened.wait_for_function(f"({FAULTY})().length")
    return opened


@pytest.fixture
def look(page, tmp_path):
    """Leaves a screenshot in the test's temporary folder, to look at after a failure."""
    yield
    page.screenshot(path=tmp_path / "page.png")


@pytest.mark.usefixtures("look")
def test_the_dropped_workflow_becomes_the_same_prompt_as_in_to_prompt(page, client):
    assert page.evaluate(PROMPT) == to_prompt(read_workflow(TEXT_TO_IMAGE), client.object_info())


@pytest.mark.usefixtures("look")
def test_dynamic_prompts_are_chosen_before_the_server_sees_them(page):
    page.evaluate(WRITE, "a {red|crimson} cat on a {{mat|rug}|sofa}")
    entries = page.evaluate(PROMPT).values()
    texts = [e["inputs"]["text"] for e in entries if e["class_type"] == "LLM4GEN_Conditioning"]
    assert all(re.fullmatch("a (red|crimson) cat on a (mat|rug|sofa)", text) for text in texts), texts
    assert len(texts) == 2


@pytest.mark.usefixtures("look")
def test_only_the_loaders_of_missing_files_are_marked(page):
    """The stand-ins have other names than the published weights; nothing else may be wrong with the graph."""
    assert page.evaluate(FAULTY) == sorted(LOADERS)
    assert page.evaluate(UNREGISTERED) == []
    assert_no_warnings(page)


@pytest.mark.usefixtures("look")
def test_a_run_shows_the_picture_on_the_canvas(page, client):
    for node in LOADERS:
        choose(page, node)
    for node, name, number in SMALL:
        page.mouse.dblclick(*page.evaluate(WIDGET, [node, name]))
        page.locator(".graphdialog input").fill(str(number))
        page.keyboard.press("Enter")
        assert page.evaluate(VALUE, [node, name]) == number
    page.wait_for_function("!app.graph.nodes.some((n) => n.has_errors)")
    assert run(page, client)["status"]["status_str"] == "success"
    page.wait_for_function(PICTURE)
    assert page.evaluate(PICTURE) == [64, 64]
    assert page.evaluate("app.lastNodeErrors ?? app.lastExecutionError ?? null") is None
    assert page.evaluate(FAULTY) == []
    assert not page.get_by_test_id("error-overlay-see-errors").is_visible()
    assert_no_warnings(page)


@pytest.mark.usefixtures("look")
def test_the_error_panel_says_where_to_put_a_missing_adapter(page):
    choose(page, "CheckpointLoaderSimple")
    choose(page, "LLM4GEN_LoadLLMEncoder")
    page.get_by_test_id("queue-button").click()
    page.get_by_test_id("error-overlay-see-errors").click()
    advice = "To use this node, put LLM4GEN's projector.pth in ComfyUI/models/llm4gen, or run"
    page.get_by_text(advice).first.wait_for()
    page.get_by_label("Toggle properties panel").click()  # the other tests see the page without it


@pytest.mark.usefixtures("look")
def test_every_help_page_is_shown_with_its_pictures_and_its_diagram(page, client):
    page.get_by_test_id("error-overlay-dismiss").click()
    ours = [n for n, node in client.object_info().items() if node["python_module"] == "custom_nodes.llm4gen"]
    used = set()
    for node in ours:
        open_help(page, node)
        text = (ROOT / "web" / "docs" / f"{node}.md").read_text(encoding="utf-8")
        help_page = page.locator(".node-help-content")
        help_page.get_by_role("heading", name=text.splitlines()[0].removeprefix("# "), exact=True).wait_for()
        assert help_page.locator("pre").inner_text().strip() == text.split("```")[1].strip()
        pictures = help_page.evaluate(PICTURES)
        links = re.findall(r"\]\((.*?)\)", text)
        assert [path for path, _, _ in pictures] == [f"/extensions/llm4gen/docs/{link}" for link in links]
        assert links[0] == f"pictures/{node}.jpg"
        assert all(width > 500 and 100 < shown <= width for _, width, shown in pictures), pictures
        used.update(links)
    files = {f"pictures/{path.name}" for path in (ROOT / "web" / "docs" / "pictures").iterdir()}
    assert files - used == {"pictures/text_to_image.jpg", "pictures/demo.png"}  # README.md shows these


def open_help(page, node):
    """Selects a new node of the given type with the mouse and opens its help page."""
    middle, info = page.evaluate(ONE_NODE, node), page.get_by_test_id("info-button")
    for _ in range(20):
        # A new graph takes clicks only after a moment, and until then the button is redrawn.
        page.mouse.click(*middle)
        with suppress(playwright.TimeoutError):
            return info.click(timeout=2000)
    raise AssertionError(f"{node} was clicked, but no help button appeared")


def choose(page, node):
    """Chooses the stand-in in a loader's drop-down with the mouse."""
    name, file = LOADERS[node]
    entry = page.locator(".litecontextmenu .litemenu-entry", has_text=file)
    for _ in range(20):  # a new graph takes clicks only after a moment
        page.mouse.click(*page.evaluate(WIDGET, [node, name]))
        with suppress(playwright.TimeoutError):
            entry.wait_for(timeout=1000)
            break
    entry.click()
    assert page.evaluate(VALUE, [node, name]) == file

"""Every example workflow as a user finds it: among the templates, dropped on the canvas, run, and its picture dropped.

The server has stand-ins under the very names that the workflows use, so that no drop-down is touched.
"""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import extra_standins
import in_process
from front_end import FAULTY, PROMPT, UNREGISTERED, assert_no_warnings, drop, first_page, fresh_page, run
from pictures.browser import quiet_front_end
from sandbox.client import Client
from sandbox.server import Server
from sandbox.workflow import TEXT_TO_IMAGE, example_workflows, read_workflow, to_prompt

pytest.importorskip("playwright.sync_api", reason="NO PLAYWRIGHT: the browser is not driven.")

EXAMPLES = pytest.mark.parametrize("file", example_workflows(), ids=lambda file: file.stem)
BASE = "checkpoints/v1-5-pruned-emaonly-fp16.safetensors"
TUNED = "diffusion_models/llm4gen_sd15_unet.safetensors"
SAVING = ("SaveImage", "LoraSave")
PIXELS, STEPS, SIZE = ["width", "height", "x", "y", "left", "top", "right", "bottom"], 2, (128, 128)
# All that is changed before Run: a quarter of every length in pixels, few steps, and a LoRA that keeps the whole
# difference, since to decompose it takes minutes on a CPU.
SHRINK = """([pixels, steps]) => {
  for (const widget of app.graph.nodes.flatMap((node) => node.widgets ?? [])) {
    if (pixels.includes(widget.name)) widget.value /= 4;
    if (widget.name === "steps") widget.value = steps;
    if (widget.name === "lora_type") widget.value = "full_diff";
  }
}"""
PICTURE_SIZE = "async (image) => { await image.decode(); return [image.naturalWidth, image.naturalHeight]; }"


@pytest.fixture(scope="module")
def server(host, module_path):
    base, models = module_path / "base", module_path / "models"
    in_process.start()  # ComfyUI's classes tell a ControlNet's shapes
    extra_standins.write_published(in_process.standins(), models)
    quiet_front_end(base)
    with Server(host, base, [models]) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    return Client(server.url)


@pytest.fixture(scope="module")
def page(server, browser):
    with first_page(server.url, browser) as page:
        yield page


@pytest.fixture
def look(page, tmp_path):
    """Leaves a screenshot in the test's own folder, for whoever wants to see."""
    yield
    page.screenshot(path=tmp_path / "page.png")


@EXAMPLES
@pytest.mark.usefixtures("look")
def test_it_runs_as_it_is_dropped(file, page, client, server):
    before = saved(server)
    opened(page, file)
    assert page.evaluate(UNREGISTERED) == [] and page.evaluate(FAULTY) == []
    assert page.evaluate(PROMPT) == to_prompt(read_workflow(file), client.object_info())
    page.evaluate(SHRINK, [PIXELS, STEPS])
    assert run(page, client)["status"]["status_str"] == "success"
    assert page.evaluate(FAULTY) == []
    assert_no_warnings(page)
    made = saved(server) - before
    assert len(made) == sum(node["type"] in SAVING for node in read_workflow(file)["nodes"]) > 0
    for each in made:
        check = assert_shows_something if each.suffix == ".png" else assert_is_the_difference
        check(each, server)


def test_a_picture_dropped_on_a_fresh_page_brings_back_its_graph(page, client, server):
    before = saved(server)
    graph = opened(page, TEXT_TO_IMAGE)
    page.evaluate(SHRINK, [PIXELS, STEPS + 1])  # unlike the file, and unlike what ran before
    sent = page.evaluate(PROMPT)
    run(page, client)
    (picture,) = saved(server) - before
    with fresh_page(page, server.url) as fresh:
        drop(fresh, picture, graph)
        assert fresh.evaluate(PROMPT) == sent
        assert sent != to_prompt(read_workflow(TEXT_TO_IMAGE), client.object_info())


def test_all_are_among_the_templates_each_with_its_thumbnail(page, client, server):
    listed = client.get("/api/workflow_templates")["llm4gen"]
    assert sorted(listed) == sorted(file.stem for file in example_workflows())
    with fresh_page(page, server.url) as fresh:
        fresh.get_by_role("button", name="Templates", exact=True).click()
        fresh.get_by_role("dialog").get_by_text("llm4gen", exact=True).click()
        for file in example_workflows():
            card = fresh.get_by_test_id(f"template-workflow-{file.stem}")
            card.scroll_into_view_if_needed()  # pictures are loaded as they come into sight
            with Image.open(file.with_suffix(".jpg")) as picture:
                assert card.locator("img").evaluate(PICTURE_SIZE) == list(picture.size)
        assert_no_warnings(fresh)


def opened(page, file):
    """Drops a workflow file; its id."""
    page.complaints.clear()
    graph = read_workflow(file)["id"]
    drop(page, file, graph)
    return graph


def saved(server):
    """The files that the server has made so far."""
    return {path for path in server.output.rglob("*") if path.is_file()}


def assert_shows_something(picture, server):
    with Image.open(picture) as image:
        assert image.size == SIZE
        assert max(high - low for low, high in image.convert("RGB").getextrema()) > 32, "flat"
        assert json.loads(image.text["prompt"]), "its graph is in it"


def assert_is_the_difference(file, server):
    """A LoRA of the UNet alone: tuned less base, weight by weight, as fp16 holds it."""
    lora = load_file(file)
    base = load_file(server.models[0] / BASE)
    tuned = load_file(server.models[0] / TUNED)
    assert len(lora) == len(tuned)
    for name, after in tuned.items():
        before = base[f"model.diffusion_model.{name}"]
        place, _, kind = f"diffusion_model.{name}".rpartition(".")
        kept = lora[f"{place}.{'diff' if kind == 'weight' else 'diff_b'}"]
        torch.testing.assert_close(kept.float(), after.float() - before.float(), rtol=2e-3, atol=1e-6)

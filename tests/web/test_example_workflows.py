"""Every example workflow can be found among the templates, dropped on the canvas, run, and restored from its picture.

The server has stand-ins under the names that the workflows use, so that no drop-down has to be changed.
"""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import extra_standins
import in_process
from front_end import FAULTY, PROMPT, UNREGISTERED, assert_no_warnings, drop, first_page, fresh_page, run
from llm4gen.models.checkpoints.adapter import read_training
from pictures.browser import quiet_front_end
from sandbox.client import Client
from sandbox.server import Server
from sandbox.workflow import TEXT_TO_IMAGE, example_workflows, read_workflow, to_prompt

pytest.importorskip("playwright.sync_api", reason="NO PLAYWRIGHT: tests in a browser need it.")

EXAMPLES = pytest.mark.parametrize("file", example_workflows(), ids=lambda file: file.stem)
BASE = "checkpoints/v1-5-pruned-emaonly-fp16.safetensors"
TUNED = "diffusion_models/llm4gen_sd15_unet.safetensors"
PIXELS, STEPS, SIZE = ["width", "height", "x", "y", "left", "top", "right", "bottom"], 2, (128, 128)
# The only changes before Run: a quarter of every length in pixels, or an eighth over SDXL, few steps, and a LoRA that
# stores the full difference, because its decomposition takes minutes on a CPU.
SHRINK = """([pixels, steps]) => {
  const isSDXL = app.graph.nodes.some((node) => node.widgets?.[0]?.value === "sd_xl_base_1.0.safetensors");
  for (const widget of app.graph.nodes.flatMap((node) => node.widgets ?? [])) {
    if (pixels.includes(widget.name)) widget.value /= isSDXL ? 8 : 4;
    if (["steps", "quiet_start", "preview_every", "accumulate"].includes(widget.name)) widget.value = steps;
    if (widget.name === "lora_type") widget.value = "full_diff";
  }
}"""
TRAIN, TRAINED = "LLM4GEN_TrainCrossAdapter", "LLM4GEN_SaveCrossAdapter"
CAPTIONS = ("a lamp in the dark", "a window in the morning")
# What a node has been told to show while it ran: its text, and whether it has a picture.
SHOWN = """(id) => {
  const node = app.graph.getNodeById(id);
  return [node.widgets.find((widget) => widget.name === "$$node-text-preview")?.value, Boolean(node.imgs?.length)];
}"""
PICTURE_SIZE = "async (image) => { await image.decode(); return [image.naturalWidth, image.naturalHeight]; }"


@pytest.fixture(scope="module")
def server(host, module_path):
    base, models = module_path / "base", module_path / "models"
    in_process.start()  # to make a ControlNet with ComfyUI's classes
    extra_standins.write_published(in_process.standins(), models)
    quiet_front_end(base)
    put_pictures(base / "input" / "my_pictures")
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
    """Leaves a screenshot in the test's temporary folder, to look at after a failure."""
    yield
    page.screenshot(path=tmp_path / "page.png")


@EXAMPLES
@pytest.mark.usefixtures("look")
def test_an_example_runs_after_it_is_dropped_on_the_canvas(file, page, client, server):
    before = saved_files(server)
    open_workflow(page, file)
    assert page.evaluate(UNREGISTERED) == [] and page.evaluate(FAULTY) == []
    assert page.evaluate(PROMPT) == to_prompt(read_workflow(file), client.object_info())
    page.evaluate(SHRINK, [PIXELS, STEPS])
    assert run(page, client)["status"]["status_str"] == "success"
    assert page.evaluate(FAULTY) == []
    assert_no_warnings(page)
    saving = [node for node in read_workflow(file)["nodes"] if node["type"] in CHECKS]
    new_files = saved_files(server) - before
    assert len(new_files) == len(saving) > 0
    for node in saving:
        prefix = Path(next(value for value in node["widgets_values"] if isinstance(value, str))).name
        (path,) = (path for path in new_files if re.fullmatch(rf"{prefix}(_\d+_steps)?_\d+_\.\w+", path.name))
        CHECKS[node["type"]](path, server)
    trained = [node["id"] for node in read_workflow(file)["nodes"] if node["type"] == TRAIN]
    for node in trained:
        page.wait_for_function(f"(id) => ({SHOWN})(id)[1]", arg=node)  # it is decoded after the run
        text, picture = page.evaluate(SHOWN, node)
        assert re.match(
            rf"training: step {STEPS} of {STEPS}\b.*mean loss \d.*steps/s, 00:00 left", text, re.DOTALL
        )
        assert picture, "no preview is shown"


def test_a_picture_dropped_on_a_fresh_page_restores_its_graph(page, client, server):
    before = saved_files(server)
    graph = open_workflow(page, TEXT_TO_IMAGE)
    page.evaluate(SHRINK, [PIXELS, STEPS + 1])  # differs from the file and from earlier runs
    sent = page.evaluate(PROMPT)
    run(page, client)
    (picture,) = saved_files(server) - before
    with fresh_page(page, server.url) as fresh:
        drop(fresh, picture, graph)
        assert fresh.evaluate(PROMPT) == sent
        assert sent != to_prompt(read_workflow(TEXT_TO_IMAGE), client.object_info())


def test_all_examples_are_among_the_templates_with_their_thumbnails(page, client, server):
    listed = client.get("/api/workflow_templates")["llm4gen"]
    assert sorted(listed) == sorted(file.stem for file in example_workflows())
    with fresh_page(page, server.url) as fresh:
        fresh.get_by_role("button", name="Templates", exact=True).click()
        fresh.get_by_role("dialog").get_by_text("llm4gen", exact=True).click()
        for file in example_workflows():
            card = fresh.get_by_test_id(f"template-workflow-{file.stem}")
            card.scroll_into_view_if_needed()  # pictures are loaded when they become visible
            with Image.open(file.with_suffix(".jpg")) as picture:
                assert card.locator("img").evaluate(PICTURE_SIZE) == list(picture.size)
        assert_no_warnings(fresh)


def put_pictures(folder):
    """The pictures and captions that the examples of training ask the user for."""
    folder.mkdir(parents=True)
    for index, caption in enumerate(CAPTIONS):
        Image.linear_gradient("L").rotate(90 * index).resize((96, 80)).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(caption, encoding="utf-8")


def open_workflow(page, file):
    """Drops a workflow file on the canvas; returns the workflow's id."""
    page.complaints.clear()
    graph = read_workflow(file)["id"]
    drop(page, file, graph)
    return graph


def saved_files(server):
    """All files that nodes have saved for the user: pictures and LoRAs, and adapters where the loader lists them."""
    folders = server.output, server.base / "models" / "llm4gen"
    files = {path for folder in folders for path in folder.rglob("*") if path.is_file()}
    # Trainings keep their states in a folder of their own.
    return {path for path in files if path.parent.name != "llm4gen_training"}


def check_picture(picture, server):
    """Asserts that a saved picture has the right size, is not a single colour and contains its prompt."""
    with Image.open(picture) as image:
        assert image.size == SIZE
        assert max(high - low for low, high in image.convert("RGB").getextrema()) > 32, "it is flat"
        assert json.loads(image.text["prompt"]), "the picture does not contain its prompt"


def check_lora(file, server):
    """Asserts that a LoRA changes only the UNet, and each weight by tuned minus base, rounded to fp16."""
    lora = load_file(file)
    base = load_file(server.models[0] / BASE)
    tuned = load_file(server.models[0] / TUNED)
    assert len(lora) == len(tuned)
    for name, after in tuned.items():
        before = base[f"model.diffusion_model.{name}"]
        layer, _, kind = f"diffusion_model.{name}".rpartition(".")
        difference = lora[f"{layer}.{'diff' if kind == 'weight' else 'diff_b'}"]
        torch.testing.assert_close(difference.float(), after.float() - before.float(), rtol=2e-3, atol=1e-6)


def check_learnt_lora(file, server):
    """Asserts that a LoRA that was learnt has changed."""
    lora = load_file(file)
    ups = [tensor for name, tensor in lora.items() if name.endswith("lora_up.weight")]
    assert ups and any(tensor.any() for tensor in ups)


def check_adapter(file, server):
    """Asserts that an adapter says how it was trained, and that the page lists it after a refresh."""
    training = json.loads(read_training(file))
    assert training["steps"] == STEPS and training["pictures"] == len(CAPTIONS)
    report = Client(server.url).get("/llm4gen/report")["adapters"]
    assert [adapter["error"] for adapter in report if adapter["name"] == file.name] == [None]


CHECKS = {
    "SaveImage": check_picture,
    "LoraSave": check_lora,
    "SaveLoRA": check_learnt_lora,
    TRAINED: check_adapter,
}

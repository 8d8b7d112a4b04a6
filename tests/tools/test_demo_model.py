"""The demo model: ComfyUI loads its parts, the wide UNet is the narrow one, and what is right is counted as such."""

import json
import shutil
from dataclasses import replace
from itertools import combinations
from random import Random

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from demo_model import figures, models, narrow, parts, reading, run_files, table, training
from demo_model.data import CELLS, PICTURES, SETS, TRAINING, Pictures, latent_of
from demo_model.symbols import states_of, symbol
from paths import STANDINS
from sandbox.standin_models import clip_shapes, unet_shapes
from sandbox.standins import ENCODER
from sandbox.workflow import read_workflow
from scenes.held_out import has_new_pair, is_for_training
from scenes.painting import paint, place_things
from scenes.scene import Place, Scene, Thing
from tiny import equal, relative_error
from training.job_file import FILES, read_job
from training.session import Session

TITLE = 30  # pixels: height of a node's title, which stands above its place


@pytest.fixture(scope="module")
def weights():
    """A narrow UNet that has learnt something, so that nothing in it is 0."""
    source = torch.Generator().manual_seed(0)
    return {
        name: weight if weight.any() else torch.randn(weight.shape, generator=source) * 0.05
        for name, weight in narrow.new_weights(0).items()
    }


@pytest.fixture(scope="module")
def loaded(started, weights, tmp_path_factory):
    """The checkpoint by ComfyUI's own loader, and the narrow UNet: model, clip, vae, narrow model."""
    import comfy.sd  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("demo_model")
    save_file(parts.checkpoint(narrow.widened(weights)), folder / "wide.safetensors")
    halves = {name: weight.half() for name, weight in weights.items()}
    save_file(halves, folder / "narrow.safetensors")
    with torch.inference_mode():
        model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(folder / "wide.safetensors"))
        yield model, clip, vae, narrow.load(str(folder / "narrow.safetensors"))
    for file in folder.iterdir():
        file.unlink()


def test_comfyui_takes_it_for_sd15_and_the_wide_unet_computes_what_the_narrow_one_does(loaded):
    wide, _, _, small = loaded
    assert type(wide.model.model_config).__name__ == "SD15"
    with torch.inference_mode():
        x, context = torch.randn(2, 4, 8, 8), torch.randn(2, 90, 768)
        sigma = torch.tensor([0.5, 5.0])
        found, expected = (
            one.model.apply_model(x.to(one.load_device), sigma.to(one.load_device), c_crossattn=context).cpu()
            - x
            for one in (wide, small)
        )
    assert relative_error(found, expected) < 5e-3  # the wide one is kept in fp16


@pytest.mark.parametrize("make", [unet_shapes, clip_shapes, lambda: narrow.build().state_dict().keys()])
def test_what_is_made_under_dynamic_vram_has_all_its_weights(make, started, monkeypatch):
    import comfy.memory_management  # noqa: PLC0415

    found = []
    for dynamic in (True, False):
        monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", dynamic)
        found.append(make())
    assert found[0] == found[1]


def test_widening_changes_no_prediction(weights, started):
    """In fp32, so up to rounding."""
    wide = narrow.build(narrow.CHANNELS * narrow.TIMES)
    wide.load_state_dict(narrow.widened(weights))
    inputs = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 700.0])
    context = torch.randn(2, 30, 768)
    with torch.no_grad():
        found, expected = wide(*inputs, context=context), figures.unet_of(weights)(*inputs, context=context)
    assert relative_error(found, expected) < 1e-5


def test_the_vae_shows_tiles_as_they_are_and_reads_them_again(loaded):
    _, _, vae, _ = loaded
    scene = SETS[TRAINING]()[0].scene
    picture = paint(place_things(scene, Random(0), CELLS), CELLS)
    pixels = ((picture + 1) / 2).repeat_interleave(parts.TILE, 1).repeat_interleave(parts.TILE, 2)
    pixels = pixels.permute(1, 2, 0)[None]
    with torch.inference_mode():
        latents = vae.encode(pixels)
        torch.testing.assert_close(latents[0].cpu(), latent_of(picture), rtol=1e-4, atol=1e-4)
        assert (vae.decode(latents).cpu() - pixels).abs().max() < 0.003  # the decoder's soft clamp


def test_other_words_give_other_clip_states(loaded):
    _, clip, _, _ = loaded
    with torch.inference_mode():
        one, other = (clip.encode_from_tokens(clip.tokenize(text)) for text in ("a red cross", "a blue ring"))
    assert one.shape == (1, 77, 768) and one.isfinite().all()
    assert relative_error(one, other) > 0.1


def test_held_out_scenes_are_never_trained_on():
    training = SETS[TRAINING]()
    assert all(is_for_training(one.scene) for one in training)
    assert all(has_new_pair(one.scene) for one in SETS["held-out pairs"]())
    texts = {one.text for one in training}
    assert not texts & {one.text for one in SETS["held-out wordings"]()}
    assert {len(one.scene.things) for one in training} == {1, 2, 3}


def test_a_caption_has_many_pictures_and_each_is_what_it_says():
    captions = SETS["seen pairs"]()[:20]
    pictures = Pictures(captions)
    assert len(pictures) == 20 * PICTURES
    latents = torch.stack([pictures[index] for index in range(60)])
    found = figures.verdicts(latents[:, :3] * (parts.CORE_SCALE / parts.SCALE), captions * 3)
    assert all(rate.right == rate.of > 0 for rate in figures.rates(found).values())
    assert torch.equal(latents[7], pictures[7])
    assert not torch.equal(latents[7], latents[27])


def test_a_picture_of_something_else_is_counted_as_wrong():
    captions = SETS["seen pairs"]()[:40]
    pictures = torch.stack([Pictures(captions)[index] for index in range(40)])[:, :3]
    found = figures.rates(figures.verdicts(pictures.roll(1, 0) * (parts.CORE_SCALE / parts.SCALE), captions))
    assert found["bound"].right < 4
    assert found["placed"].of < 40  # only some captions say a place


def test_it_is_trained_in_two_parts_as_in_one_and_the_table_has_every_row(
    started, tmp_path, monkeypatch, capsys
):
    """A few captions and steps: nothing is learnt, but all that a long run does is done."""
    few = {name: (lambda draw=draw: draw()[:2]) for name, draw in SETS.items()}
    for module in (training, reading, table):
        monkeypatch.setattr(module, "SETS", few)
    monkeypatch.setattr(figures, "STEPS", 2)
    llm = STANDINS / "text_encoders" / ENCODER
    session = Session(started.core, started.ours)
    schema = {key: entry for key, entry in session.schema().items() if key not in FILES}

    def run(folder, steps):
        small = ["batch_size=3", "noises=2", "save_every=2", "mlp_dim=64", "tokens=12"]
        teacher = [*small, "steps=2"]
        own = [*small, f"steps={steps}", "decay=constant"]
        folder.mkdir(exist_ok=True)
        jobs = (
            read_job(file, changes, schema)
            for file, changes in ((training.TEACHER_JOB, teacher), (training.JOB, own))
        )
        with torch.inference_mode():
            training.train(session, *jobs, llm, folder, 2)
        return load_file(folder / run_files.UNET), load_file(folder / run_files.ADAPTER)

    run(tmp_path / "twice", 2)
    shutil.copytree(tmp_path / "twice" / "features", tmp_path / "once" / "features")
    assert all(map(equal, run(tmp_path / "twice", 4), run(tmp_path / "once", 4)))
    lines = [json.loads(line) for line in (tmp_path / "once" / run_files.FIGURES).read_text().splitlines()]
    assert [(line["stage"], line["step"], line["strength"]) for line in lines] == [
        ("teacher", 2, 0),
        ("teacher", 2, 0),
        *(("student", step, strength) for step in (2, 4) for strength in (1, 0, 1, 0)),
    ]

    arguments = ["--comfyui", "x", "--llm", llm, "--folder", tmp_path / "once", "--count", "2"]
    arguments += ["--without-llm", tmp_path / "twice"]
    monkeypatch.setattr("sys.argv", ["table", *map(str, arguments)])
    monkeypatch.setattr(table, "start_comfyui", lambda *_: session)
    capsys.readouterr()
    assert table.main() == 0
    rows = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines() if "%" in line]
    expected = [*(f"strength {s:g}" for s in table.STRENGTHS), "noise", "trained without the LLM"]
    assert rows == expected * 3


def test_confidence_intervals_are_wilsons():
    """Values of Wilson's formula by hand: 50 of 100, none of 10."""
    assert figures.Rate(50, 100).interval == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert figures.Rate(0, 10).interval == pytest.approx((0.0, 0.2775), abs=1e-4)


def test_a_contact_sheet_shows_every_picture():
    pictures = torch.stack([Pictures(SETS["seen pairs"]()[:1])[index] for index in range(13)])[:, :3]
    sheet = figures.contact_sheet(pictures * (parts.CORE_SCALE / parts.SCALE))
    assert isinstance(sheet, Image.Image)
    assert sheet.size == ((10 * 9 + 1) * 8, (2 * 9 + 1) * 8)
    corner = pictures[12, :, 0, 0] * (parts.CORE_SCALE / parts.SCALE)
    expected = tuple(((corner + 1) * 127.5).byte().tolist())
    assert sheet.getpixel(((1 + 2 * 9) * 8, (1 + 9) * 8)) == expected


def test_symbols_say_all_that_a_scene_says_and_nothing_else():
    things = Thing("red", "square"), Thing("blue", "ring", "small")
    scene = Scene(things, Place(0, "left", 1))
    said = {
        states_of(one).numpy().tobytes()
        for one in (
            scene,
            Scene(things),
            Scene(things, Place(1, "left", 0)),
            Scene(things, Place(0, "above", 1)),
            Scene(things, Place(0, "left")),
            Scene((replace(things[0], colour="blue"), replace(things[1], colour="red")), Place(0, "left", 1)),
            Scene((things[0], replace(things[1], size=None)), Place(0, "left", 1)),
        )
    }
    assert len(said) == 7 and not states_of(None).any()
    assert torch.equal(states_of(scene)[0], symbol("red") + symbol("square") + symbol("left", "of another"))
    assert relative_error(symbol("red"), symbol("blue")) > 1


def test_no_node_of_the_graph_covers_another():
    places = []
    for node in read_workflow(models.GRAPH)["nodes"]:
        (left, top), (width, height) = node["pos"], node["size"]
        assert width > 200
        places.append((left, top - TITLE, left + width, top + height))
    for one, other in combinations(places, 2):
        apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
        assert apart, (one, other)

"""Training for SDXL through ComfyUI's server: from files that its own loaders read to a changed picture."""

import numpy as np
import pytest
from PIL import Image

import sdxl_checkpoint
from sandbox.client import Client, image_paths
from sandbox.model_choice import make_standins
from sandbox.server import Server
from sandbox.standins import ENCODER
from training_inputs import JOB, NEW

SDXL = "sdxl.safetensors"


@pytest.fixture(scope="module")
def sdxl_server(started, host, standin, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdxl")
    (folder / "checkpoints").mkdir()
    sdxl_checkpoint.write(folder / "checkpoints" / SDXL, standin)
    with Server(host, tmp_path_factory.mktemp("sdxl-server"), [make_standins(host), folder]) as server:
        yield server
    (folder / "checkpoints" / SDXL).unlink()


def graph():
    """Trains on an empty latent, and draws with the new adapter (21), the trained one (22), and its LoRA too (23)."""
    text = "a red cat on a blue mat"
    job = {
        **JOB,
        "batch_size": 1,
        "learning_rate": 1e-2,
        "unet": "LoRA",
        "precision": "fp32",
        "preview_every": 0,
    }
    nodes = {
        "1": ("CheckpointLoaderSimple", {"ckpt_name": SDXL}),
        "3": ("LLM4GEN_LoadLLMEncoder", {"encoder_name": ENCODER}),
        "4": ("LLM4GEN_NewCrossAdapter", {"llm": ["3", 0], **NEW, "context_width": 2048}),
        "5": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}),
        "6": ("PrimitiveString", {"value": text}),
        "7": (
            "LLM4GEN_TrainingSet",
            {"texts": ["6", 0], "clip": ["1", 1], "llm": ["3", 0], "adapter": ["4", 0], "latents": ["5", 0]},
        ),
        "8": (
            "LLM4GEN_TrainCrossAdapter",
            {"model": ["1", 0], "training_set": ["7", 0], "adapter": ["4", 0], **job},
        ),
    }
    # Each text costs CLIP-G seconds here.
    for name, adapter in (("new", ["4", 0]), ("trained", ["8", 0])):
        fused = {"clip": ["1", 1], "llm": ["3", 0], "adapter": adapter}
        nodes[name] = ("LLM4GEN_Conditioning", {**fused, "text": text})
    for number, fused, model in (
        (21, ["new", 0], ["1", 0]),
        (22, ["trained", 0], ["1", 0]),
        (23, ["trained", 0], ["8", 2]),
    ):
        # At 1, guidance reads the positive side alone.
        sampling = {"steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
        sides = {"positive": fused, "negative": fused}
        nodes[f"{number}s"] = (
            "KSampler",
            {"model": model, **sides, "latent_image": ["5", 0], "seed": 1, **sampling},
        )
        nodes[f"{number}d"] = ("VAEDecode", {"samples": [f"{number}s", 0], "vae": ["1", 2]})
        nodes[str(number)] = ("SaveImage", {"images": [f"{number}d", 0], "filename_prefix": f"sdxl_{number}"})
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def test_a_few_steps_change_what_sdxl_draws(sdxl_server):
    outputs = Client(sdxl_server.url).run(graph())
    pictures = []
    for node in ("21", "22", "23"):
        (path,) = image_paths({node: outputs[node]}, sdxl_server.output)
        with Image.open(path) as picture:
            pictures.append(np.asarray(picture.convert("RGB"), dtype=np.float32))
    new, trained, with_lora = pictures
    assert all(picture.std() > 1 for picture in pictures)
    assert np.abs(trained - new).mean() > 0.5 and np.abs(with_lora - trained).mean() > 0.1

"""A prompt gives the same latent in every memory mode that ComfyUI can be started with, and in a list of prompts."""

import re

import pytest
import torch
from safetensors.torch import load_file

from sandbox.client import Client
from sandbox.model_choice import make_standins
from sandbox.server import Server
from sandbox.standins import ADAPTER, CHECKPOINT, ENCODER
from tiny import relative_error

MODES = ["--disable-dynamic-vram", "--disable-smart-memory", "--cache-none"]
GPU_MODES = ["--cpu", "--lowvram", "--novram", "--highvram", "--gpu-only", "--enable-dynamic-vram"]
TEXTS = ["a red cat on a mat", "a dog in the snow, a very long sentence about a dog in the snow"]


def prompt(**inputs):
    """A prompt that samples two steps and saves the latent; `inputs` go to the positive LLM4GEN Conditioning."""
    loaders = {"clip": ["checkpoint", 1], "llm": ["llm", 0], "adapter": ["adapter", 0]}
    sampler = {
        "seed": 1,
        "steps": 2,
        "cfg": 7.5,
        "sampler_name": "euler",
        "scheduler": "normal",
        "denoise": 1.0,
    }
    graph = {
        "checkpoint": ("CheckpointLoaderSimple", {"ckpt_name": CHECKPOINT}),
        "llm": ("LLM4GEN_LoadLLMEncoder", {"encoder_name": ENCODER, "dtype": "fp32"}),
        "adapter": ("LLM4GEN_LoadCrossAdapter", {"adapter_name": ADAPTER}),
        "positive": ("LLM4GEN_Conditioning", loaders | inputs),
        "negative": ("LLM4GEN_Conditioning", loaders | {"text": ""}),
        "latent": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}),
        "sampler": (
            "KSampler",
            sampler
            | {
                "model": ["checkpoint", 0],
                "positive": ["positive", 0],
                "negative": ["negative", 0],
                "latent_image": ["latent", 0],
            },
        ),
        "save": ("SaveLatent", {"samples": ["sampler", 0], "filename_prefix": "modes"}),
    }
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in graph.items()}


def latents(server, graph):
    """Runs a prompt and returns the latents that it saves."""
    files = Client(server.url).run(graph)["save"]["latents"]
    return [load_file(server.output / file["filename"])["latent_tensor"] for file in files]


@pytest.fixture(scope="module")
def expected(server):
    """The latent of each text, from the server without a memory mode."""
    return [latents(server, prompt(text=text))[0] for text in TEXTS]


@pytest.mark.parametrize("mode", GPU_MODES)
def test_a_memory_mode_of_a_gpu_changes_nothing(mode, gpu, expected, host, tmp_path):
    check(mode, expected, host, tmp_path)


@pytest.mark.parametrize("mode", MODES)
def test_a_memory_mode_changes_nothing(mode, expected, host, tmp_path):
    check(mode, expected, host, tmp_path)


def check(mode, expected, host, folder):
    with Server(host, folder, [make_standins(host)], arguments=[mode]) as server:
        (latent,) = latents(server, prompt(text=TEXTS[0]))
        assert mode in server.arguments and server.alive
        on_cpu = re.search(r"Device: cpu\b", server.log_text())
        assert bool(on_cpu) == (mode == "--cpu" or not host.has_accelerator)
    if host.has_accelerator:  # another device rounds differently
        assert relative_error(latent, expected[0]) <= 2e-2
    else:
        assert torch.equal(latent, expected[0])


def test_a_list_of_prompts_gives_the_latent_of_each(server, expected):
    """ComfyUI calls a node once for each entry of a list."""
    graph = prompt(text=["list", 0])
    for index, text in enumerate(TEXTS):
        graph[f"text{index}"] = {"class_type": "PrimitiveString", "inputs": {"value": text}}
    entries = {f"inputs.input{index}": [f"text{index}", 0] for index in range(len(TEXTS))}
    graph["list"] = {"class_type": "CreateList", "inputs": entries}
    listed = latents(server, graph)
    assert len(listed) == len(expected) and all(map(torch.equal, listed, expected))
    assert not torch.equal(*listed)

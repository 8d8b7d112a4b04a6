"""Encoders, adapters and prompts change in one server and half of the prompts are cancelled: the next one works."""

import json
import random
import shutil
import time
from itertools import count, islice

import pytest
from safetensors.torch import save_file

import gguf_files
import tiny
from gguf_files import Kind
from graphs import fusing_graph
from paths import T5_TOKENIZER
from sandbox.client import Client, Interrupted
from sandbox.model_choice import make_standins
from sandbox.server import Server

ROUNDS = 50
ARGUMENTS = ["--fp32-text-enc"]  # otherwise each prompt converts CLIP from fp16, which takes most of its time
# encoder file: the adapters that fit it, and the dtypes to try.
CHOICES = {
    "deep.safetensors": (["wide.safetensors", "other.safetensors"], ["auto", "bf16", "fp8"]),
    "small.gguf": (["wide.safetensors"], ["auto", "fp32"]),
    "qwen": (["narrow.safetensors"], ["auto", "fp16"]),
}


@pytest.fixture(scope="module")
def folder(module_path):
    """A models directory with encoders of many layers, so that Cancel arrives while they run."""
    encoders, adapters = module_path / "text_encoders", module_path / "llm4gen"
    adapters.mkdir()
    shutil.copytree(T5_TOKENIZER, encoders / "qwen")
    gguf_files.make("Qwen2", vocab_size=tiny.VOCABULARY, num_hidden_layers=24).save_pretrained(
        encoders / "qwen"
    )
    sizes = {"d_model": 256, "d_ff": 1024, "d_kv": 64}
    save_file(tiny.rankgen_tensors(tiny.t5_encoder(**sizes, num_layers=24)), encoders / "deep.safetensors")
    gguf_files.write_t5(encoders / "small.gguf", tiny.t5_encoder(**sizes, num_layers=12), Kind.Q8_0)
    for name, width, heads in (("wide", 256, 8), ("other", 256, 4), ("narrow", 64, 8)):
        recipe = {"llm4gen": json.dumps({"heads": heads, "layer": -2 if name == "other" else -1})}
        save_file(tiny.adapter_tensors(clip=768, llm=width), adapters / f"{name}.safetensors", recipe)
    return module_path


def graphs(seed):
    """Endless prompts, of which no two are equal. CLIP runs in every fourth."""
    generator = random.Random(seed)
    for number in count():
        encoder = generator.choice(list(CHOICES))
        adapters, dtypes = CHOICES[encoder]
        text = f"{'a very ' * generator.randrange(60)}large cat, number {number} of {seed}"
        loader = {"encoder_name": encoder, "dtype": generator.choice(dtypes)}
        yield fusing_graph(loader, generator.choice(adapters), text, runs_clip=number % 4 == 0)


def cancelled(client, graph, delay):
    """Runs a prompt and cancels it `delay` seconds after its Conditioning node has started. Returns whether that was
    in time. Progress events cannot set the moment: ComfyUI sends only ten a second."""

    def on_event(kind, data):
        if kind == "executing" and data["node"] == "4":
            time.sleep(delay)
            client.interrupt()

    try:
        client.run(graph, on_event)
    except Interrupted:
        return True
    return False


def test_after_a_cancel_the_next_prompt_gives_the_same_output_as_on_a_fresh_server(host, folder, tmp_path):
    models, generator = [make_standins(host), folder], random.Random(0)
    outputs, cancels = [], 0
    with Server(host, tmp_path / "changing", models, arguments=ARGUMENTS) as server:
        client, to_cancel, to_finish = Client(server.url), graphs("to_cancel"), graphs("to_finish")
        for _ in range(ROUNDS):
            cancels += cancelled(client, next(to_cancel), generator.uniform(0, 0.1))
            outputs.append(client.run(next(to_finish))["5"])
    assert cancels >= ROUNDS / 5, "too few prompts were cancelled in time for the test to mean anything"
    with Server(host, tmp_path / "fresh", models, arguments=ARGUMENTS) as server:
        client, to_finish = Client(server.url), graphs("to_finish")
        every_fifth = list(islice(to_finish, 0, ROUNDS, 5))
        assert [client.run(graph)["5"] for graph in every_fifth] == outputs[::5]
    assert len({json.dumps(output) for output in outputs}) == ROUNDS

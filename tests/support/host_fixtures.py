"""What the tests share: the real server, the host in this very process with the stand-ins loaded, a browser."""

import os
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

import in_process
import warm_start
from host.comfyui import Installation
from paths import COMFYUI
from pictures.browser import find_browser, quiet_front_end
from sandbox.client import Client
from sandbox.model_choice import make_standins
from sandbox.process import ProcessTree
from sandbox.server import Server
from sandbox.standins import ADAPTER, CHECKPOINT, ENCODER
from sandbox.workflow import TEXT_TO_IMAGE, read_workflow

# It asserts for tests: so that a failure there tells what was compared, too.
pytest.register_assert_rewrite("front_end")

# The server


@pytest.fixture(scope="session")
def host():
    """The ComfyUI that the tests were told to use, run by the Python that runs them."""
    host = Installation(COMFYUI, Path(sys.executable))
    if not host.main.is_file():
        pytest.fail(f"no ComfyUI in {COMFYUI}: run the tests with `python tools/dev.py test`.", pytrace=False)
    with warm_start.servers(host):
        yield host


@pytest.fixture
def cold_start(monkeypatch):
    """Servers of this test start as users start them, where the start or the end itself is under test."""
    monkeypatch.setattr(Server, "start", ProcessTree)


@pytest.fixture(scope="session")
def gpu():
    """Skips a test where torch sees no GPU, real or pretended."""
    here = torch.cuda.is_available() or torch.backends.mps.is_available()
    if not here and not (hasattr(torch, "accelerator") and torch.accelerator.is_available()):
        pytest.skip("NO GPU HERE: the tests marked gpu are not run")


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A models directory of the server's, empty at first, for files that a test makes."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def server(host, models, tmp_path_factory):
    base = tmp_path_factory.mktemp("server")
    quiet_front_end(base)
    with Server(host, base, [make_standins(host), models]) as server:
        yield server


@pytest.fixture(scope="session")
def client(server):
    return Client(server.url)


@pytest.fixture(scope="module")
def object_info(client):
    """The nodes of the module's server."""
    return client.object_info()


@pytest.fixture
def workflow():
    """The plainest example."""
    return read_workflow(TEXT_TO_IMAGE)


@pytest.fixture(scope="session")
def empty_server(host, tmp_path_factory):
    """A server without a single model."""
    with Server(host, tmp_path_factory.mktemp("empty-server")) as server:
        yield server


@pytest.fixture(scope="session")
def empty_client(empty_server):
    return Client(empty_server.url)


# The browser


@pytest.fixture(scope="session")
def browser():
    """The path of an installed Chromium."""
    found = find_browser()
    if found is None:
        missing = pytest.fail if os.environ.get("LLM4GEN_NEED_BROWSER") else pytest.skip
        missing("NO BROWSER: install Chromium to run the front-end tests.")
    return found


# The host in this process


@pytest.fixture(scope="session")
def put(tmp_path_factory):
    """Puts tensors among the host's models: (folder, file name, tensors). The folders are there before anything
    is loaded, since a CLIP keeps the list of where embeddings lie."""
    started, models = in_process.start(), tmp_path_factory.mktemp("put")
    for folder in (
        "checkpoints",
        "controlnet",
        "diffusion_models",
        "embeddings",
        "gligen",
        "llm4gen",
        "loras",
    ):
        (models / folder).mkdir()
    in_process.use_models(started.folders, models)
    return lambda folder, name, tensors: save_file(tensors, models / folder / name)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Our `folders` module over two empty places each for encoders and adapters, `one` and `two` in `tmp_path`, and
    one for what else may lie around."""
    host = in_process.start()
    from llm4gen.nodes import folders  # noqa: PLC0415

    ours = (folders.ENCODERS, folders.ADAPTERS)
    for key in (*ours, "checkpoints", "clip_vision", "controlnet", "diffusion_models", "loras", "vae"):
        roots = [tmp_path / name / key for name in ("one", "two")[: 2 if key in ours else 1]]
        for root in roots:
            root.mkdir(parents=True)
        kinds = set() if key in ours else host.folders.supported_pt_extensions
        monkeypatch.setitem(host.folders.folder_names_and_paths, key, ([str(root) for root in roots], kinds))
    monkeypatch.setattr(host.folders, "filename_list_cache", {})
    return folders


@pytest.fixture(scope="session")
def standin():
    """The stand-in checkpoint's tensors, to make others from."""
    return load_file(in_process.standins() / "checkpoints" / CHECKPOINT)


@pytest.fixture(scope="session")
def started(put):
    return in_process.start()


@pytest.fixture(scope="session")
def management(started):
    """ComfyUI's memory management."""
    import comfy.model_management  # noqa: PLC0415

    return comfy.model_management


@pytest.fixture(scope="session")
def host_module(started):
    """Our module `nodes/host.py`."""
    from llm4gen.nodes import host  # noqa: PLC0415

    return host


@pytest.fixture(scope="session")
def load_checkpoint(started, put):
    """Load Checkpoint on new tensors: MODEL, CLIP and VAE."""

    def load(name, tensors):
        put("checkpoints", name, tensors)
        with torch.inference_mode():
            return started.core.CheckpointLoaderSimple().load_checkpoint(name)

    return load


@pytest.fixture(scope="session")
def load_unet(started, put):
    """Load Diffusion Model on new tensors."""

    def load(name, tensors):
        put("diffusion_models", name, tensors)
        with torch.inference_mode():
            return started.core.UNETLoader().load_unet(name, "default")[0]

    return load


@pytest.fixture(scope="session")
def checkpoint(started):
    """MODEL, CLIP and VAE.

    ComfyUI leaves CLIP's text projection, which SD1.5 checkpoints lack, as the memory was. Here it is NaN, so that a
    test that compares it as numbers fails always, not by chance.
    """
    with torch.inference_mode():
        loaded = started.core.CheckpointLoaderSimple().load_checkpoint(CHECKPOINT)
        loaded[1].cond_stage_model.clip_l.transformer.text_projection.weight.fill_(torch.nan)
    return loaded


@pytest.fixture(scope="session")
def model(checkpoint):
    return checkpoint[0]


@pytest.fixture(scope="session")
def clip(checkpoint):
    return checkpoint[1]


@pytest.fixture(scope="session")
def llm(started):
    return in_process.run(started.ours["LLM4GEN_LoadLLMEncoder"], encoder_name=ENCODER, dtype="fp32")


@pytest.fixture(scope="session")
def adapter(started):
    return in_process.run(started.ours["LLM4GEN_LoadCrossAdapter"], adapter_name=ADAPTER)


@pytest.fixture(scope="module")
def fuse(started, llm, adapter):
    """LLM4GEN CLIP on a CLIP."""

    def fuse(clip, **settings):
        node = started.ours["LLM4GEN_ApplyToCLIP"]
        with torch.inference_mode():
            return in_process.run(node, clip=clip, llm=llm, adapter=adapter, **settings)

    return fuse


@pytest.fixture(scope="module")
def fused(clip, fuse):
    return fuse(clip)


@pytest.fixture(scope="session")
def encode(started):
    """CLIP Text Encode."""

    def encode(clip, text=in_process.SHORT):
        with torch.inference_mode():
            return started.core.CLIPTextEncode().encode(clip, text)[0]

    return encode


@pytest.fixture(scope="module")
def condition(started, clip, llm, adapter):
    """LLM4GEN Conditioning."""

    def condition(text, **changes):
        inputs = {"clip": clip, "llm": llm, "adapter": adapter, "text": text} | changes
        with torch.inference_mode():
            return in_process.run(started.ours["LLM4GEN_Conditioning"], **inputs)

    return condition


class Sampled(NamedTuple):
    """A latent, and the shape of the context in each call of the UNet."""

    samples: torch.Tensor
    calls: list[tuple[int, ...]]


@pytest.fixture(scope="module")
def sample(started, request):
    """KSampler: two steps on a picture of 64 by 64 pixels with the stand-in's UNet, unless told otherwise."""

    def sample(
        positive, negative, latent=None, model=None, steps=2, sampler="euler", scheduler="normal", **settings
    ):
        calls = []

        def wrapper(apply, arguments):
            calls.append(tuple(arguments["c"]["c_crossattn"].shape))
            return apply(arguments["input"], arguments["timestep"], **arguments["c"])

        model = (model or request.getfixturevalue("model")).clone()
        model.set_model_unet_function_wrapper(wrapper)
        latent = {"samples": torch.zeros(1, 4, 8, 8) if latent is None else latent}
        with torch.inference_mode():
            (done,) = started.core.common_ksampler(
                model, 1, steps, 7.5, sampler, scheduler, positive, negative, latent, **settings
            )
        assert done["samples"].shape == latent["samples"].shape
        assert done["samples"].isfinite().all()
        return Sampled(done["samples"], calls)

    return sample

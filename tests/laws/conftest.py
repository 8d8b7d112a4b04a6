"""Models of the family that a test or a module is parametrised with, in place of SD1.5's: `other_models.FAMILIES`."""

from functools import partial

import pytest
import torch

import in_process
import other_models
import tiny
from other_models import SDXL


@pytest.fixture(scope="module")
def family(request):
    return getattr(request, "param", "SD1.5")


@pytest.fixture(scope="module")
def width(family):
    """The width of CLIP's states."""
    return other_models.WIDTHS[family]


@pytest.fixture(scope="module")
def model(family, request, model):
    return other_models.make_model(SDXL) if family == SDXL.name else model


@pytest.fixture(scope="module")
def clip(family, started, clip):
    if family != SDXL.name:
        return clip
    with torch.inference_mode():
        return other_models.make_clip(SDXL, started.folders.get_folder_paths("embeddings"))


@pytest.fixture(scope="module")
def adapter(family, started, put, adapter):
    if family != SDXL.name:
        return adapter
    put("llm4gen", "sdxl.safetensors", tiny.adapter_tensors(clip=SDXL.width, llm=2048))
    return in_process.run(started.ours["LLM4GEN_LoadCrossAdapter"], adapter_name="sdxl.safetensors")


@pytest.fixture(scope="module")
def sample(sample, model):
    return partial(sample, model=model)

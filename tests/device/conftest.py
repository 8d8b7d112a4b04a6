"""The tests here need a GPU. `tests/laws/test_device_lane.py` runs them on a pretend one."""

import gc
from contextlib import contextmanager

import pytest
import torch

collect_ignore_glob = [] if torch.cuda.is_available() else ["test_*.py"]


@pytest.fixture(autouse=True)
def on_a_gpu(gpu):
    """Gives every test here the marker gpu."""


@pytest.fixture(scope="session")
def quick_collection(started):
    """The tests here collect garbage often. What the imports left for good need not be looked through each time."""
    gc.collect()
    gc.freeze()


MODES = ("legacy", "dynamic", "gpu-only")


@pytest.fixture(params=MODES)
def mode(request, started, quick_collection):
    """How ComfyUI manages memory."""
    with memory_mode(request.param):
        yield request.param


@contextmanager
def memory_mode(name):
    """Without Dynamic VRAM, with it, with everything on the card from the beginning, or with nothing there: `cpu`."""
    import comfy.memory_management  # noqa: PLC0415
    import comfy.model_management as management  # noqa: PLC0415
    import comfy.model_patcher as patchers  # noqa: PLC0415
    from comfy.cli_args import args  # noqa: PLC0415

    if name == "dynamic" and not comfy.memory_management.aimdo_enabled:
        pytest.skip("NO DYNAMIC VRAM HERE")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(args, "gpu_only", name == "gpu-only")
        patch.setattr(comfy.memory_management, "aimdo_enabled", name == "dynamic")
        if name != "dynamic":
            patch.setattr(patchers, "CoreModelPatcher", patchers.ModelPatcher)
        if name == "cpu":
            patch.setattr(management, "cpu_state", management.CPUState.CPU)
        yield
        with torch.inference_mode():  # as ComfyUI does
            management.unload_all_models()

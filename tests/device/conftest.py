"""The tests here need a GPU. `tests/laws/test_device_lane.py` runs them on a pretend one."""

import pytest
import torch

collect_ignore_glob = [] if torch.cuda.is_available() else ["test_*.py"]


@pytest.fixture(autouse=True)
def on_a_gpu(gpu):
    """Gives every test here the marker gpu."""


@pytest.fixture(params=["legacy", "dynamic", "gpu-only"])
def mode(request, started, monkeypatch):
    """How ComfyUI manages memory: without Dynamic VRAM, with it, or with everything on the card from the beginning."""
    import comfy.memory_management  # noqa: PLC0415
    import comfy.model_management as management  # noqa: PLC0415
    import comfy.model_patcher as patchers  # noqa: PLC0415
    from comfy.cli_args import args  # noqa: PLC0415

    dynamic = request.param == "dynamic"
    if dynamic and not comfy.memory_management.aimdo_enabled:
        pytest.skip("NO DYNAMIC VRAM HERE")
    with monkeypatch.context() as patch:
        patch.setattr(args, "gpu_only", request.param == "gpu-only")
        patch.setattr(comfy.memory_management, "aimdo_enabled", dynamic)
        if not dynamic:
            patch.setattr(patchers, "CoreModelPatcher", patchers.ModelPatcher)
        yield request.param
        management.unload_all_models()

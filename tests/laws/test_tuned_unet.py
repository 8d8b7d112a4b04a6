"""The published UNet is a diffusers file with SD1.5's dimensions: core's Load Diffusion Model loads it unchanged."""

import gc

import pytest
import torch
from safetensors.torch import save_file

import in_process
from tiny import relative_error


@pytest.fixture(scope="module")
def unet(module_path):
    """diffusers' UNet2DConditionModel with SD1.5's config and random fp16 weights, and its file."""
    from diffusers import UNet2DConditionModel  # noqa: PLC0415

    torch.manual_seed(0)
    with torch.device("meta"):
        model = UNet2DConditionModel(cross_attention_dim=768)  # all other defaults have SD1.5's sizes
    weights = {}
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape) * (tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 0.02)
        weights[name] = (noise + (tensor.ndim == 1 and "norm" in name and name.endswith("weight"))).half()
    path = module_path / "diffusion_models" / "diffusion_pytorch_model.safetensors"
    path.parent.mkdir()
    save_file(weights, path)
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
    yield model.eval().requires_grad_(False), path
    del model, weights
    gc.collect()


@torch.inference_mode()
def test_one_step_on_a_fused_context_equals_diffusers(unet, started):
    oracle, path = unet
    assert sum(weight.numel() for weight in oracle.parameters()) == 859_520_964
    in_process.use_models(started.folders, path.parent.parent)
    (patcher,) = started.core.UNETLoader().load_unet(path.name, "default")
    assert type(patcher.model.model_config).__name__ == "SD15"

    noisy, context = torch.randn(2, 4, 16, 16), torch.randn(2, 333, 768)
    timestep = torch.tensor([601, 601])
    expected = oracle(noisy, timestep, encoder_hidden_states=context).sample

    import comfy.model_management  # noqa: PLC0415

    comfy.model_management.load_models_gpu([patcher])
    sigma = patcher.model.model_sampling.sigma(timestep.float())
    scaled = noisy * (sigma.view(-1, 1, 1, 1) ** 2 + 1) ** 0.5  # ComfyUI divides its input by this
    denoised = patcher.model.apply_model(scaled, sigma, c_crossattn=context)
    noise = (scaled - denoised) / sigma.view(-1, 1, 1, 1)  # eps-prediction: denoised = x - sigma * eps
    assert relative_error(noise, expected) <= 1e-3

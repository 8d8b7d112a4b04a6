"""A training on a GPU learns what one on the CPU learns, however ComfyUI manages its memory."""

import sys

import pytest
import torch
from conftest import memory_mode

import in_process
from llm4gen.models.training.adamw import adamw
from sandbox.standins import CHECKPOINT, ENCODER
from tiny import relative_error, weights_of
from training_inputs import JOB, NEW

CHANGED = {"quiet_start": 1, "precision": "fp32", "preview_every": 0}
# What learns, and what else reads tensors on the card.
KINDS = {
    "LoRA, with previews and pairs of words": {"unet": "LoRA", "preview_every": 2, "entity_weight": 0.1},
    "whole UNet": {"unet": "whole", "gradient_checkpointing": True},
}


@pytest.fixture(scope="module")
def train(started):
    """A training of a new adapter, with models of its own: what Train Cross-Adapter gives."""
    from llm4gen.nodes import train as nodes  # noqa: PLC0415

    torch.manual_seed(0)
    images = [torch.rand(1, 64, 64, 3), torch.rand(1, 64, 64, 3)]

    @torch.inference_mode()
    def train(**changes):
        model, clip, vae = started.core.CheckpointLoaderSimple().load_checkpoint(CHECKPOINT)
        llm = in_process.run(started.ours["LLM4GEN_LoadLLMEncoder"], encoder_name=ENCODER, dtype="fp32")
        new = in_process.run(nodes.NewCrossAdapter, llm=llm, **NEW)
        lists = {"clip": [clip], "llm": [llm], "adapter": [new], "vae": [vae]}
        texts, pairs = ["a red cat", "a blue dog"], ["red: cat", "blue: dog"]
        data = in_process.run(nodes.TrainingSetNode, images=images, texts=texts, pairs=pairs, **lists)
        return nodes.TrainCrossAdapter.execute(model, data, new, **JOB | CHANGED | changes).args

    return train


@pytest.fixture(scope="module", autouse=True)
def gradients():
    """Autograd asks a real card for its streams. So on a pretend one no step has gradients, nor on the CPU with which
    it is compared."""
    with pytest.MonkeyPatch.context() as patch:
        if "pretend_card" in sys.modules:
            patch.setattr(torch.Tensor, "backward", lambda loss: None)
        yield


@pytest.fixture(scope="module")
def on_cpu(train):
    """The losses of each kind of training."""
    with memory_mode("cpu"):
        return {kind: train(**changes)[3]["loss"] for kind, changes in KINDS.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_has_the_losses_that_it_has_on_the_cpu(kind, mode, train, on_cpu):
    adapter, _, _, losses, _ = train(**KINDS[kind])
    assert losses["loss"] == pytest.approx(on_cpu[kind], rel=2e-3)
    assert all(weight.device.type == "cpu" for weight in weights_of(adapter.adapter).values())


def test_adamw_moves_weights_as_on_the_cpu(management):
    moved = []
    for device in (torch.device("cpu"), management.get_torch_device()):
        weight = torch.linspace(-1.0, 1.0, 8).to(device).requires_grad_(True)
        optimizer = adamw([{"params": [weight], "lr": 1e-2}], 0.1, device)
        for step in range(3):
            weight.grad = torch.linspace(1.0, -2.0, 8).to(device) * (step + 1)
            optimizer.step()
        moved.append(weight.detach().cpu())
    assert relative_error(*moved) <= 1e-6

"""What the tests of training share: a tiny UNet of diffusers, a tiny adapter, and procedural latents with captions."""

from dataclasses import replace

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch.nn.functional import layer_norm

from llm4gen.models.cross_adapter import CrossAdapter, CrossAdapterConfig
from llm4gen.models.encoders.rows import all_rows, distinct_rows
from llm4gen.models.features.features import Features
from llm4gen.models.training.data import EncodedText, Example, TrainingData
from llm4gen.models.training.schedule import NoiseSchedule
from llm4gen.models.training.settings import Drops, Settings
from llm4gen.models.training.start import new_adapter
from llm4gen.models.training.trainer import Trainer

WIDTH, LLM_WIDTH = 32, 24  # of the UNet's context, and of the LLM's states
CONFIG = CrossAdapterConfig(clip_dim=WIDTH, llm_dim=LLM_WIDTH, mlp_dim=64, heads=4)
NO_DROPS = Drops(0.0, 0.0, 0.0)


def ddpm(prediction: str) -> DDPMScheduler:
    """SD1.5's noise schedule, by diffusers."""
    kind = {"eps": "epsilon", "v": "v_prediction"}[prediction]
    return DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=kind
    )


def schedule(prediction: str = "eps") -> NoiseSchedule:
    return NoiseSchedule(ddpm(prediction).alphas_cumprod, prediction)


def unet(seed: int = 0) -> UNet2DConditionModel:
    """One level of 32 channels, with cross-attention in all of its blocks."""
    torch.manual_seed(seed)
    model = UNet2DConditionModel(
        block_out_channels=(32,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    return model.eval().requires_grad_(False)


class SmallUNet(torch.nn.Module):
    """The parts of a UNet that matter here, for tests of many steps: convolutions, a timestep, cross-attention."""

    def __init__(self, channels: int = 32):
        super().__init__()
        torch.manual_seed(0)
        self.enter = torch.nn.Conv2d(4, channels, 3, padding=1)
        self.time = torch.nn.Linear(8, channels)
        self.attention = torch.nn.MultiheadAttention(channels, 4, kdim=WIDTH, vdim=WIDTH, batch_first=True)
        self.mix = torch.nn.Conv2d(channels, channels, 3, padding=1)
        self.leave = torch.nn.Conv2d(channels, 4, 3, padding=1)
        self.requires_grad_(False)

    def forward(self, noised, timesteps, context, _=None):
        angles = timesteps[:, None] * torch.tensor([0.5, 0.1, 0.01, 0.001])
        x = self.enter(noised) + self.time(torch.cat([angles.sin(), angles.cos()], 1))[..., None, None]
        tokens = torch.nn.functional.silu(x).flatten(2).transpose(1, 2)
        told, _ = self.attention(tokens, context, context, need_weights=False)
        x = x + told.transpose(1, 2).unflatten(2, x.shape[2:])
        x = x + self.mix(torch.nn.functional.silu(x))
        return self.leave(torch.nn.functional.silu(x))


def predictor(model):
    """A UNet of diffusers as the trainer calls it."""
    return lambda noised, timesteps, context, _=None: (
        model(noised, timesteps, encoder_hidden_states=context).sample
    )


def text(seed: int, *, tokens: int = 6, positions: int = 12, drop_padding: bool = False) -> EncodedText:
    """Random states of a caption. Padded positions share some of their rows, as a T5's do."""
    torch.manual_seed(1000 + seed)
    rows = (
        all_rows(tokens, tokens)
        if drop_padding
        else distinct_rows(tokens, positions, buckets=8, max_distance=6)
    )
    states = torch.randn(len(rows.positions), LLM_WIDTH)
    return EncodedText(torch.randn(7, WIDTH), Features(states, rows))


def picture(seed: int) -> torch.Tensor:
    """A latent of 8 by 8 with a bright rectangle, which depends on the seed."""
    latent = torch.full((4, 8, 8), -1.0)
    left, top, channel = seed % 5, (seed // 2) % 5, seed % 4
    latent[channel, top : top + 3, left : left + 3] = 1.5
    return latent


def data(count: int = 4, **changes) -> TrainingData:
    """Pictures with captions. The captions have different numbers of tokens."""
    examples = [Example(picture(i), text(i, tokens=3 + i % 4, **changes)) for i in range(count)]
    return TrainingData(examples, text(99, tokens=2, **changes))


def spoken(count: int, first: int = 0) -> TrainingData:
    """Pictures with captions of 30 words, whose states in CLIP depend on their places as well."""
    chance = torch.Generator().manual_seed(3)
    words, places = torch.randn(30, WIDTH, generator=chance), torch.randn(7, WIDTH, generator=chance) / 2

    def said(seed: int) -> EncodedText:
        ids = torch.randint(30, (7,), generator=torch.Generator().manual_seed(seed))
        return replace(text(seed, tokens=3 + seed % 4), clip=layer_norm(words[ids] + places, (WIDTH,)))

    examples = [Example(picture(i), said(i)) for i in range(first, first + count)]
    return TrainingData(examples, said(99))


def adapter(seed: int = 0) -> CrossAdapter:
    return new_adapter(CONFIG, seed)


def trainer(objective, adapter, examples=None, unet=None, **settings) -> Trainer:
    settings = {"steps": 20, "batch_size": 2, "warm_up": 0, "drops": NO_DROPS} | settings
    return Trainer(
        objective, examples or data(), Settings(**settings), timesteps=1000, adapter=adapter, unet=unet
    )


class Sharing:
    """Ranks whose processes are threads."""

    def __init__(self, number, count, barrier, given):
        self.number, self.count, self.barrier, self.given = number, count, barrier, given

    def add(self, tensors):
        self.given[self.number] = [tensor.clone() for tensor in tensors]
        self.barrier.wait()
        for place, tensor in enumerate(tensors):
            tensor.copy_(sum(shares[place] for shares in self.given))
        self.barrier.wait()

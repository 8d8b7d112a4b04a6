"""The host's side of a model: its device, its dtypes, its patcher. The only user of ComfyUI's memory
management, layers and progress bar."""

from __future__ import annotations

from collections.abc import Callable

import comfy.model_management as management
import comfy.model_patcher
import comfy.ops
import torch
from comfy.utils import ProgressBar
from torch import Tensor, nn

DEVICES = ("default", "cpu")
# Layers that the host can leave in RAM, or on disk, and bring over as they are used.
LAYERS = comfy.ops.manual_cast


class Hosted:
    """A model under the host's memory management: moved, streamed and freed as the host sees fit.

    patcher: by this name the host finds the model in a node's output, to keep it or to let it go first.
    """

    def __init__(self, model: nn.Module, device: str = "default"):
        self.model = model
        on_cpu = torch.device("cpu")
        self.patcher = comfy.model_patcher.CoreModelPatcher(  # rebound by the host: not to be imported
            model,
            load_device=on_cpu if device == "cpu" else management.text_encoder_device(),
            offload_device=on_cpu if device == "cpu" else management.text_encoder_offload_device(),
        )

    def ready(self) -> torch.device:
        """Asks the host to make the model usable, and says where its inputs belong."""
        management.load_models_gpu([self.patcher])
        return self.patcher.load_device


def ran_out_of_memory(error: Exception) -> bool:
    """Whether an error is the device's, or the machine's, lack of memory."""
    return isinstance(error, MemoryError) or "allocate memory" in str(error) or management.is_oom(error)


def make_room() -> None:
    """Takes all models off their devices, as the host does after running out of memory."""
    management.unload_all_models()
    management.soft_empty_cache()


def product_dtype(weights: torch.dtype, device: torch.device, choice: str) -> torch.dtype:
    """The dtype in which an LLM's products with its weights are computed; all else is fp32.

    | choice | CPU | GPU |
    |---|---|---|
    | fp32 | fp32, exact* | fp32, exact* |
    | others | bf16 if the processor multiplies it; fp16 for fp16 weights if it multiplies that; \
else fp32 | fp16, or fp32 where the host does not trust fp16 |

    * Unless the user or another pack has told torch or the host to round fp32 products (TF32, `--fast`).

    So that the states stay within 2% of fp32 on CPU and 0.5% on GPU (relative norm): bf16 products are off by
    about 1%, fp16 products by about 0.1%, and the rows are scaled so that T5 does not leave fp16's range.
    """
    if choice == "fp32":
        return torch.float32
    if not management.is_device_cpu(device):
        return torch.float16 if management.should_use_fp16(device) else torch.float32
    able = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch do not tell
    if weights is torch.float16 and able.get("avx512_fp16"):
        return torch.float16
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32


def progress(steps: int) -> Callable[[], None]:
    """Something to call after each step of long work: moves the node's bar and stops the work on Cancel."""
    bar = ProgressBar(steps)

    def step() -> None:
        management.throw_exception_if_processing_interrupted()
        bar.update(1)

    return step


def as_conditioning(tensor: Tensor) -> Tensor:
    """A tensor where the host wants conditioning to lie."""
    return tensor.to(management.intermediate_device())

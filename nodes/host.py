"""ComfyUI's memory management, seen from here: devices, dtypes, patchers, the progress bar. Nothing else uses it."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import comfy.model_management as management
import comfy.model_patcher
import comfy.ops
import torch
from comfy.utils import ProgressBar
from torch import Tensor, nn

from ..models.progress import Step

DEVICES = ("default", "cpu")
# Layers whose weights ComfyUI can leave in RAM or on disk, and bring to the device as they are used.
LAYERS = comfy.ops.manual_cast


Model = TypeVar("Model", bound=nn.Module)


class ManagedModel(Generic[Model]):
    """A model under ComfyUI's memory management, which moves, streams and frees its weights.

    patcher: ComfyUI looks for an attribute of this name on node outputs when it decides what to unload.
    """

    def __init__(self, model: Model, device: str = "default"):
        self.model = model
        cpu = torch.device("cpu")
        # Looked up at each use: ComfyUI rebinds this name when Dynamic VRAM is on.
        self.patcher = comfy.model_patcher.CoreModelPatcher(
            model,
            load_device=cpu if device == "cpu" else management.text_encoder_device(),
            offload_device=cpu if device == "cpu" else management.text_encoder_offload_device(),
        )

    def ready(self) -> torch.device:
        """Asks ComfyUI to make the model usable. Returns the device that its inputs belong on."""
        management.load_models_gpu([self.patcher])
        return self.patcher.load_device


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that the device or the machine has no memory left."""
    return isinstance(error, MemoryError) or "allocate memory" in str(error) or management.is_oom(error)


def unload_all_models() -> None:
    """Takes all models off their devices, as ComfyUI does after running out of memory."""
    management.unload_all_models()
    management.soft_empty_cache()


def compute_dtype(weights: torch.dtype, device: torch.device, choice: str) -> torch.dtype:
    """The dtype in which an LLM's products with its weights are computed. Everything else is fp32.

    | choice | on a CPU | on a GPU |
    |---|---|---|
    | fp32 | fp32, exact* | fp32, exact* |
    | others | bf16 if the processor multiplies it; fp16 for fp16 weights if it multiplies that; \
else fp32 | fp16, or fp32 where ComfyUI does not trust fp16 |

    * Unless the user or another pack has told torch or ComfyUI to round fp32 products (TF32, `--fast`).

    These choices keep the states within 2% of fp32 on a CPU and 0.5% on a GPU (relative norm): bf16 products are off
    by about 1%, fp16 products by about 0.1%, and rows are scaled so that T5 stays within fp16's range.
    """
    if choice == "fp32":
        return torch.float32
    if not management.is_device_cpu(device):
        return torch.float16 if management.should_use_fp16(device) else torch.float32
    # Older versions of torch lack this function.
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if weights is torch.float16 and capabilities.get("avx512_fp16"):
        return torch.float16
    has_bf16 = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.bfloat16 if has_bf16 else torch.float32


def progress(total: int, done: int = 0) -> Step:
    """Shows progress in the node's bar, and stops the work at the next step when the user presses Cancel.

    done: steps that were done before, where work goes on that had been stopped.
    """
    bar = ProgressBar(total)
    bar.current = done

    def step() -> None:
        management.throw_exception_if_processing_interrupted()
        bar.update(1)

    return step


def as_conditioning(tensor: Tensor) -> Tensor:
    """Moves a tensor to the device on which ComfyUI keeps conditioning."""
    return tensor.to(management.intermediate_device())


# Training


def copy_from_file(model: Any) -> Any:
    """A copy of a MODEL whose weights are read again from its file, with the MODEL's LoRA, merges and options.

    None if the MODEL does not know its file, because no loader of ComfyUI's made it.
    """
    if model.cached_patcher_init is None:
        return None
    load, arguments, *index = model.cached_patcher_init
    loaded = load(*arguments, disable_dynamic=True)
    loaded = loaded[index[0]] if index else loaded
    return model.clone(disable_dynamic=True, model_override=loaded.get_clone_model_override())


def origin(model: Any) -> str:
    """The file of a MODEL, and what was patched onto it. Patches have another name after each start of ComfyUI."""
    return f"{model.cached_patcher_init and model.cached_patcher_init[1:]} {model.patches and model.patches_uuid}"


def load_to_train(patchers: list[Any]) -> torch.device:
    """Puts models on their device as a whole, since weights that come and go cannot be trained. Returns the device."""
    management.load_models_gpu(patchers, memory_required=1e20, force_full_load=True)
    return patchers[0].load_device


def release(patcher: Any) -> None:
    """Takes a model that is no longer needed off its device, and lets ComfyUI forget it."""
    for loaded in [entry for entry in management.current_loaded_models if entry.model is patcher]:
        loaded.model_unload()
        management.current_loaded_models.remove(loaded)
    management.soft_empty_cache()


def training_dtype(model: Any, choice: str) -> torch.dtype:
    """The dtype in which a UNet that is trained is computed. auto: bf16 where the device multiplies it, else fp32."""
    if choice != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[choice]
    return torch.bfloat16 if management.should_use_bf16(model.load_device) else torch.float32

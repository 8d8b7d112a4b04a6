"""ComfyUI's memory management, seen from here: devices, dtypes, patchers, the progress bar. Nothing else uses it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import comfy.model_management as management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import torch
from comfy.cli_args import args
from comfy.utils import ProgressBar
from torch import Tensor, nn

from ..models import errors
from ..models.errors import MissingDevice

CPU = torch.device("cpu")
# What ComfyUI is started with to choose the dtype of its text encoders' weights → our name of that dtype. Both kinds
# of fp8 take as much memory; e4m3 with a scale for each matrix, as we store it, is the more precise one.
ENCODER_DTYPES = {
    "fp8_e4m3fn_text_enc": "fp8",
    "fp8_e5m2_text_enc": "fp8",
    "fp16_text_enc": "fp16",
    "bf16_text_enc": "bf16",
    "fp32_text_enc": "fp32",
}

log = logging.getLogger(__name__)


class Layers(comfy.ops.manual_cast):
    """Layers whose weights ComfyUI can leave in RAM or on disk, and bring to the device as they are used.

    `models/encoders/operations.py` says what the two functions are for.
    """

    @staticmethod
    @contextmanager
    def weights_on(layer: Any, device: torch.device) -> Iterator[tuple[Tensor, Tensor | None]]:
        weight, bias, stream = comfy.ops.cast_bias_weight(
            layer, dtype=layer.weight.dtype, device=device, offloadable=True
        )
        try:
            yield weight, bias
        finally:
            comfy.ops.uncast_bias_weight(layer, weight, bias, stream)

    @staticmethod
    def may_stream(module: Any) -> None:
        module.comfy_cast_weights, module.weight_function, module.bias_function = True, [], []


LAYERS = Layers

Model = TypeVar("Model", bound=nn.Module)


class ManagedModel(Generic[Model]):
    """A model under ComfyUI's memory management, which moves, streams and frees its weights.

    patcher: ComfyUI looks for an attribute of this name on node outputs when it decides what to unload.
    """

    def __init__(self, model: Model, device: str = "default"):
        self.model = model
        load_device, offload_device = devices_for(model, device)
        # Looked up at each use: ComfyUI rebinds this name when Dynamic VRAM is on.
        self.patcher = comfy.model_patcher.CoreModelPatcher(
            model, load_device=load_device, offload_device=offload_device
        )

    def ready(self) -> torch.device:
        """Asks ComfyUI to make the model usable. Returns the device that its inputs belong on."""
        management.load_models_gpu([self.patcher])
        return self.patcher.load_device

    def is_dynamic(self) -> bool:
        """ComfyUI asks a node's outputs: what Dynamic VRAM manages is not dropped from the cache in mid-prompt."""
        return self.patcher.is_dynamic()


def device_options() -> list[str]:
    """What a user can choose: `default`, `cpu`, and ComfyUI's names of the cards if it has several."""
    return list(management.get_gpu_device_options())


def load_device_of(choice: str) -> torch.device:
    """The device where a model runs, given one of `device_options`. Raises: MissingDevice."""
    if choice == "default":
        return management.text_encoder_device()
    device = management.resolve_gpu_device_option(choice)
    if device is None or (choice != "cpu" and management.is_device_cpu(device)):
        raise MissingDevice(
            f"The device {choice} was chosen, but this ComfyUI has {', '.join(device_options())}. Choose one of these "
            "in Load LLM Encoder."
        )
    return device


def devices_for(model: nn.Module, device: str) -> tuple[torch.device, torch.device]:
    """Where a model computes, and where its weights wait: as ComfyUI has it for its text encoders.

    A model with a dtype that the device cannot cast, such as bf16 with DirectML or fp8 on Apple's GPUs, stays on the
    CPU, as ComfyUI's text encoders do. Raises: MissingDevice.
    """
    if device == "cpu":
        return CPU, CPU
    load_device = load_device_of(device)
    dtypes = {weight.dtype for weight in model.parameters() if weight.dtype.is_floating_point}
    uncastable = [dtype for dtype in dtypes if not management.supports_cast(load_device, dtype)]
    if uncastable and not management.is_device_cpu(load_device):
        log.warning(
            "%s cannot cast %s weights, so the LLM runs on the CPU. The dtype fp16 would run on the device.",
            load_device,
            " or ".join(map(str, uncastable)),
        )
        return CPU, CPU
    return load_device, management.text_encoder_offload_device()


def encoder_dtype(choice: str) -> str:
    """The dtype that is meant by a choice in Load LLM Encoder. `auto` leaves it to what ComfyUI was started with."""
    if choice != "auto":
        return choice
    return next((dtype for flag, dtype in ENCODER_DTYPES.items() if getattr(args, flag, False)), "auto")


def is_fp32_forced() -> bool:
    """Whether ComfyUI was started with `--force-fp32`."""
    return management.FORCE_FP32


def may_map_files() -> bool:
    """Whether weights may stay in memory-mapped files: ComfyUI was not started with `--disable-mmap`."""
    return not comfy.utils.DISABLE_MMAP


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that the device or the machine has no memory left."""
    # ComfyUI's own question comes first: it also clears an error that CUDA would report again.
    return management.is_oom(error) or errors.is_out_of_memory(error)


def unload_all_models() -> None:
    """Takes all models off their devices, as ComfyUI does after running out of memory."""
    management.unload_all_models()
    management.soft_empty_cache()


def compute_dtype(weights: torch.dtype, device: torch.device, choice: str) -> torch.dtype:
    """The dtype in which an LLM's products with its weights are computed. Everything else is fp32.

    | choice | on a CPU | on a GPU |
    |---|---|---|
    | fp32, or `--force-fp32` | fp32, exact* | fp32, exact* |
    | others | bf16 if the processor multiplies it; fp16 for fp16 weights if it multiplies that; \
else fp32 | fp16, or fp32 where ComfyUI does not trust fp16 |

    * Unless the user or another pack has told torch or ComfyUI to round fp32 products (TF32, `--fast`).

    These choices keep the states within 2% of fp32 on a CPU and 0.5% on a GPU (relative norm): bf16 products are off
    by about 1%, fp16 products by about 0.1%, and rows are scaled so that T5 stays within fp16's range.
    """
    if choice == "fp32" or is_fp32_forced():
        return torch.float32
    if not management.is_device_cpu(device):
        return torch.float16 if management.should_use_fp16(device) else torch.float32
    # Older versions of torch lack this function.
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if weights is torch.float16 and capabilities.get("avx512_fp16"):
        return torch.float16
    has_bf16 = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.bfloat16 if has_bf16 else torch.float32


def weights_dtype(file: torch.dtype | None, device: torch.device) -> torch.dtype | None:
    """Which dtype a file's weights are loaded in if the user leaves the choice to us; None: the file's.

    A card that computes in fp16 would round fp32 weights at each use. Rounded once, they take half of its memory. On a
    CPU, weights in the file's dtype stay memory-mapped.

    file: the dtype of most of the file's numbers; None: they are quantised.
    """
    if file is torch.float32 and not management.is_device_cpu(device):
        return compute_dtype(file, device, "auto")
    return None


def progress(total: int, done: int = 0) -> Callable[..., None]:
    """Shows progress in the node's bar, and stops the work at the next step when the user presses Cancel.

    done: steps that were done before, where work goes on that had been stopped.
    Returns a function to call after each step, also with a picture to show in the node, as `latent_preview` makes it.
    """
    bar = ProgressBar(total)
    bar.current = done

    def step(picture: Any = None) -> None:
        management.throw_exception_if_processing_interrupted()
        bar.update_absolute(bar.current + 1, preview=picture)

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


def load_to_train(patchers: list[Any]) -> torch.device:
    """Puts models on their device as a whole, since weights that come and go cannot be trained. Returns the device."""
    management.load_models_gpu(patchers, memory_required=1e20, force_full_load=True)
    return patchers[0].load_device


def is_on_cpu(patcher: Any) -> bool:
    """Whether a model is computed on the CPU."""
    return management.is_device_cpu(patcher.load_device)


@contextmanager
def undisturbed(patchers: list[Any]) -> Iterator[None]:
    """Inside the block, ComfyUI may load other models and does not move these from their device to make room.

    A UNet that is moved in the middle of a training would lose what its patched weights have learnt.
    """
    loaded = management.current_loaded_models
    held = [entry for entry in loaded if any(entry.model is patcher for patcher in patchers)]
    for entry in held:
        loaded.remove(entry)
    try:
        yield
    finally:
        loaded.extend(held)


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

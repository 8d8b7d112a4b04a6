"""A pretend GPU, so that ComfyUI's own GPU code and ours run where there is none.

Its tensors say that they are on cuda:0 and keep their numbers in main memory. As on a real card, an operation on
tensors of two devices raises, memory ends at a set size, and operations are counted. It does at once what is put into
a stream, leaves memory as it is that should be pinned, and knows no times. `install()` must come before ComfyUI is
imported, and stays for the whole process.
"""

from __future__ import annotations

import contextlib
import threading
import types
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
CARD, CPU = torch.device("cuda", 0), torch.device("cpu")


class Card:
    """What the card holds and what ran on it since `reset`.

    operations:  that wrote a tensor there, by name; copies between devices are not among them.
    uploads:     bytes that came from main memory.
    waits:       how often the program waited for the card: it read a number or copied a tensor back.
    """

    total = 8 << 30
    used = peak = uploads = waits = 0
    operations: ClassVar[Counter[str]] = Counter()
    holders: ClassVar[dict[int, list[int]]] = {}  # storage → its bytes, and how many tensors share it

    @classmethod
    def reset(cls) -> None:
        cls.operations, cls.uploads, cls.waits, cls.peak = Counter(), 0, 0, cls.used

    @classmethod
    def hold(cls, values: torch.Tensor) -> int:
        storage = values.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in cls.holders:
            cls.holders[key][1] += 1
            return key
        if cls.used + size > cls.total:
            raise torch.cuda.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {size} bytes; {cls.used} of {cls.total} are in use."
            )
        cls.holders[key] = [size, 1]
        cls.used += size
        cls.peak = max(cls.peak, cls.used)
        return key

    @classmethod
    def release(cls, key: int, values: torch.Tensor) -> None:
        cls.holders[key][1] -= 1
        if cls.holders[key][1] == 0:
            cls.used -= cls.holders.pop(key)[0]


class OnCard(torch.Tensor):
    """A tensor on the pretend card. values: its numbers, in main memory."""

    values: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> OnCard:
        key = Card.hold(values)
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, values.size(), strides=values.stride(), storage_offset=values.storage_offset(),
            dtype=values.dtype, layout=values.layout, device=CARD,
        )  # fmt: skip
        tensor.values = values
        weakref.finalize(tensor, Card.release, key, values).atexit = False
        return tensor

    def __getitem__(self, index):
        """torch would make the tensor of a list of indices on its own card."""
        parts = index if isinstance(index, tuple) else (index,)
        return super().__getitem__(tuple(torch.tensor(x) if isinstance(x, list) else x for x in parts))

    def data_ptr(self):
        return self.values.data_ptr()

    def untyped_storage(self):
        return self.values.untyped_storage()

    def __repr__(self):
        return f"on the card: {self.values!r}"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})


# Composite operations that a card runs as one.
WHOLE = {aten.scaled_dot_product_attention.default, aten.rms_norm.default, aten.linear.default}
# Operations that allocate or alias a tensor, but write none.
WRITE_NOTHING = {
    aten.empty.memory_format, aten.empty_strided.default, aten.empty_like.default, aten.new_empty.default,
    aten.new_empty_strided.default, aten.detach.default, aten.alias.default, aten.lift_fresh.default,
    aten._unsafe_view.default,
}  # fmt: skip
# Operations after which the program knows numbers of the tensor.
READ = {
    aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default, aten.is_nonzero.default,
    aten._unique2.default, aten.unique_dim.default,
}  # fmt: skip
# Operations whose indices may be on the CPU although the tensor is not.
INDEXED = {
    aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default, aten._unsafe_index.Tensor,
}  # fmt: skip


def is_card(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def flat(x: Any) -> Iterator[Any]:
    """What lists and tuples in each other hold. torch's own `tree_flatten` takes several times as long."""
    if isinstance(x, list | tuple):
        for part in x:
            yield from flat(part)
    else:
        yield x


def mapped(change: Callable[[Any], Any], x: Any) -> Any:
    """The same lists and tuples with `change` of all that they hold."""
    return type(x)([mapped(change, part) for part in x]) if isinstance(x, list | tuple) else change(x)


def concerns_card(x: Any) -> bool:
    return isinstance(x, OnCard) or (isinstance(x, torch.device) and x.type == "cuda")


def values_of(x: Any) -> Any:
    return x.values if isinstance(x, OnCard) else x


def run(function, args, kwargs):
    """One operation of torch, where a tensor or the result is on the card."""
    if function is aten._to_copy.default:
        return copied(args[0], kwargs)
    if function is aten.copy_.default:
        return copied_into(args[0], args[1])
    tensors = [x for x in flat((args, *kwargs.values())) if isinstance(x, torch.Tensor)]
    here = [x for x in tensors if isinstance(x, OnCard)]
    refuse_two_devices(function, args, tensors, here)
    if function in READ:
        Card.waits += 1
    to_card = is_card(kwargs["device"]) if kwargs.get("device") is not None else bool(here)
    plain_args = mapped(values_of, args)
    plain_kwargs = {name: mapped(values_of, value) for name, value in kwargs.items()}
    if is_card(plain_kwargs.get("device")):
        plain_kwargs["device"] = CPU
    plain_kwargs.pop("pin_memory", None)
    result = function(*plain_args, **plain_kwargs)
    if not to_card:
        return result
    if writes(function) and any(isinstance(x, torch.Tensor) for x in flat(result)):
        Card.operations[function.__name__.partition(".")[0]] += 1
    given = {id(x.values): x for x in here}  # an operation in place gives back the tensor that it was given

    def on_card(x):
        if not isinstance(x, torch.Tensor) or x.is_meta:
            return x
        return given[id(x)] if id(x) in given else OnCard(x)

    return mapped(on_card, result)


def writes(function) -> bool:
    views = any(x.alias_info is not None and not x.alias_info.is_write for x in function._schema.returns)
    return not views and function not in WRITE_NOTHING


def copied(source, kwargs):
    """`source.to(...)`."""
    device = kwargs.get("device")
    to_card = isinstance(source, OnCard) if device is None else is_card(device)
    target = CPU if device is None or is_card(device) else device
    values = values_of(source)
    if values.is_meta:
        raise NotImplementedError("Cannot copy out of meta tensor; no data!")
    options = {
        name: value for name, value in kwargs.items() if name not in ("device", "non_blocking", "pin_memory")
    }
    result = aten._to_copy.default(values, **options, device=target)
    count_copy(source, to_card, values.nbytes, "to")
    return OnCard(result) if to_card else result


def copied_into(target, source):
    """`target.copy_(source)`."""
    aten.copy_.default(values_of(target), values_of(source))
    count_copy(source, isinstance(target, OnCard), values_of(source).nbytes, "copy_")
    return target


def count_copy(source, to_card: bool, size: int, name: str) -> None:
    if to_card and isinstance(source, OnCard):
        Card.operations[name] += 1
    elif to_card:
        Card.uploads += size
    elif isinstance(source, OnCard):
        Card.waits += 1


def refuse_two_devices(function, args, tensors, here) -> None:
    """As torch does, which takes only single numbers and indices from the CPU beside a card's tensors."""
    elsewhere = [x for x in tensors if not isinstance(x, OnCard) and x.dim()]
    if function in INDEXED and isinstance(args[0], OnCard):
        elsewhere = [x for x in elsewhere if not any(x is index for index in args[1])]
    if here and elsewhere:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
            f"(in {function.__name__})"
        )


class Mode(TorchDispatchMode):
    """Sends to the card what concerns it, also operations that make tensors."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not any(concerns_card(x) for x in flat((args, *kwargs.values()))):
            return function(*args, **kwargs)
        if function not in WHOLE and function._can_decompose():
            with self:
                result = function.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return run(function, args, kwargs)


class Stream:
    """A stream does all at once here."""

    def __init__(self, *args, **kwargs):
        self.cuda_stream = 0

    def wait_stream(self, *_):
        pass

    synchronize = wait_stream


def install(total: int = 8 << 30) -> None:
    """Makes torch offer the card. total: its memory, in bytes."""
    Card.total = total
    torch._C._ensureCUDADeviceGuardSet()
    properties = types.SimpleNamespace(
        major=8, minor=6, name="Pretend card", total_memory=total, gcnArchName="", multi_processor_count=28
    )
    answers = {
        "_lazy_init": None, "is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0,
        "set_device": None, "synchronize": None, "empty_cache": None, "ipc_collect": None,
        "is_bf16_supported": True, "get_device_properties": properties, "get_device_capability": (8, 6),
        "get_device_name": properties.name, "get_allocator_backend": "native", "current_stream": Stream(),
    }  # fmt: skip
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *args, answer=answer, **kwargs: answer)
    torch.cuda.memory_stats = lambda *_: {
        "active_bytes.all.current": Card.used, "reserved_bytes.all.current": Card.used
    }  # fmt: skip
    torch.cuda.mem_get_info = lambda *_: (Card.total - Card.used, Card.total)
    torch.cuda.Stream, torch.cuda.stream = Stream, contextlib.nullcontext
    succeed = lambda *_: 0  # noqa: E731
    torch.cuda.cudart = lambda: types.SimpleNamespace(cudaHostRegister=succeed, cudaHostUnregister=succeed)
    torch.version.cuda = torch.version.cuda or "13.0"
    for name in ("tensor", "as_tensor"):  # these make a tensor before any dispatch
        setattr(torch, name, made_then_moved(getattr(torch, name)))
    functional = torch.nn.functional
    functional.scaled_dot_product_attention = differentiable(functional.scaled_dot_product_attention)
    # A parameter cannot change its class in place.
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    Mode().__enter__()
    threading.Thread.run = in_mode(threading.Thread.run)


def in_mode(run):
    """A mode is on in one thread alone, and ComfyUI's server runs prompts in another than the first."""

    def run_in_mode(thread):
        with Mode():
            run(thread)

    return run_in_mode


def differentiable(attention):
    """Outside of inference mode, torch chooses a kernel of the real card's before any dispatch."""

    def attend(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **options):
        if isinstance(query, OnCard) and not torch.is_inference_mode_enabled():
            plain = torch._scaled_dot_product_attention_math
            return plain(query, key, value, attn_mask, dropout_p, is_causal, **options)[0]
        return attention(query, key, value, attn_mask, dropout_p, is_causal, **options)

    return attend


def made_then_moved(make):
    def moved(data, *args, device=None, **kwargs):
        if isinstance(data, OnCard):
            return data.to(device=device, dtype=kwargs.get("dtype"))
        return (
            make(data, *args, **kwargs).to(device)
            if is_card(device)
            else make(data, *args, device=device, **kwargs)
        )

    return moved

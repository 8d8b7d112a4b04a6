"""Every error that this pack raises for a user. Each message says what was found, what was wanted, what to do."""

import re

ESCAPE_CODES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
# Libraries advise to switch off what protects from code in a file.
UNSAFE_ADVICE = re.compile(
    r"weights[_ ]only|safe_globals|allowlist|trust_remote_code|execute|inspect the repository", re.IGNORECASE
)
# How torch, the operating systems and the libraries of GPUs say that memory is short: Linux and Windows of main memory,
# the others of a card's. cuBLAS, cuDNN and oneDNN (the last words) fail so when they cannot get memory for themselves.
OUT_OF_MEMORY = re.compile(
    r"(allocate|not enough|out of) memory|paging file is too small|out_of_(device_)?memory|_alloc(ation)?_failed"
    r"|could not create a primitive$",
    re.IGNORECASE,
)
# How they say how much they were asked for: torch on every device, DirectML, numpy.
WANTED = re.compile(r"allocate (?:tensor with )?(\d[\d.]*) ?(bytes|[KMGT]i?B)\b")


class LLM4GENError(Exception):
    """The base class of all errors that a user may read."""

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        # ComfyUI shows an exception's module in its error dialog, and names a pack's modules by their file path.
        cls.__module__ = "llm4gen"


class UnreadableFile(LLM4GENError):
    """The file is damaged, cut short, empty, or in a format that cannot be read safely."""


class UnknownCheckpoint(LLM4GENError):
    """The file can be read, but does not hold the model that was asked for."""


class IncompleteCheckpoint(LLM4GENError):
    """The model was recognised, but tensors are missing, unknown, of the wrong shape, or not finite."""


class WrongRecipe(LLM4GENError):
    """The adapter's metadata asks for something that its LLM cannot be given."""


class WidthMismatch(LLM4GENError):
    """The widths of CLIP, LLM and adapter do not fit together."""


class AlreadyFused(LLM4GENError):
    """The conditioning carries an LLM's half already."""


class UnequalTexts(LLM4GENError):
    """Texts that are encoded in one call do not match CLIP's, or each other in length."""


class MissingTokenizer(LLM4GENError):
    """The encoder has no readable tokenizer, or its tokenizer belongs to another model."""


class MissingFile(LLM4GENError):
    """ComfyUI's model folders hold no file of that name."""


class MissingCLIP(LLM4GENError):
    """The node got no CLIP, because the checkpoint holds none."""


class OutOfMemory(LLM4GENError):
    """An LLM or a training does not fit into the memory of its device."""


class MissingDevice(LLM4GENError):
    """The machine has no such device."""


class MissingPackage(LLM4GENError):
    """The file can only be read with an optional Python package, which is not installed."""


class UnreadableText(LLM4GENError):
    """A tokenizer fails on this text, or makes a token of it that the LLM does not know."""


class WrongTraining(LLM4GENError):
    """A training job asks for something that is not possible, or its parts do not fit together."""


class UntrainableModel(LLM4GENError):
    """The model cannot be trained: another kind than SD1.5, quantised, or not from a loader."""


class TrainingDiverged(LLM4GENError):
    """The loss or its gradients are no longer finite."""


class NoSpace(LLM4GENError):
    """The disk is full, or what must be kept there cannot be written."""


class UnusableState(LLM4GENError):
    """A file does not hold the state of this training."""


def words_of(error: Exception) -> str:
    """What a library's error says, for a message of ours: its type and its first line.

    The colours of a terminal are left out, and so are sentences that advise to load code from a file.
    """
    lines = [line.strip() for line in ESCAPE_CODES.sub("", str(error)).splitlines()]
    sentences = re.split(r"(?<=[.!?])\s+", next(filter(None, lines), ""))
    said = " ".join(sentence for sentence in sentences if not UNSAFE_ADVICE.search(sentence))
    return f"{type(error).__name__}: {said.rstrip('.')}" if said else type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, of whatever class, says that the machine or a card has no memory left."""
    return isinstance(error, MemoryError) or OUT_OF_MEMORY.search(str(error)) is not None


def memory_wanted(error: BaseException) -> str | None:
    """How much memory the library wanted that has found too little, such as `2.00 GiB`; None if it does not say."""
    found = WANTED.search(str(error))
    if found is None:
        return None
    count, unit = found.groups()
    return f"{int(count) / 2**30:.3g} GiB" if unit == "bytes" and count.isdigit() else f"{count} {unit}"

"""Every error that this pack raises for a user. Each message says what was found, what was wanted, what to do."""


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
    """The LLM does not fit into the memory of its device."""


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


class UnusableState(LLM4GENError):
    """A file does not hold the state of this training."""

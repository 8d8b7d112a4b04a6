"""What can go wrong for a user. Each error says what was found, what was wanted, and what to do."""


class LLM4GENError(Exception):
    """Base of every error that this pack raises for a user to read."""

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls.__module__ = (
            "llm4gen"  # the host calls a pack's modules by their path, which a dialog need not show
        )


class UnreadableFile(LLM4GENError):
    """The file is damaged, cut short, empty, or of a format that cannot be read safely."""


class UnknownCheckpoint(LLM4GENError):
    """The file is readable but does not hold the model that was asked for."""


class IncompleteCheckpoint(LLM4GENError):
    """The model was recognised, but tensors are missing, surplus, of the wrong shape or not finite."""


class WrongRecipe(LLM4GENError):
    """The adapter's description of how its LLM is fed cannot be followed."""


class WidthMismatch(LLM4GENError):
    """CLIP, LLM and adapter do not fit each other."""


class MissingTokenizer(LLM4GENError):
    """The encoder has no tokenizer of its own and the host's does not fit it."""


class MissingFile(LLM4GENError):
    """No file of that name lies in the host's model folders."""


class MissingCLIP(LLM4GENError):
    """The checkpoint holds no CLIP."""


class OutOfMemory(LLM4GENError):
    """The LLM does not fit in the memory that there is."""


class MissingPackage(LLM4GENError):
    """The file is of a kind that is read with a Python package which is not installed."""


class UnreadableText(LLM4GENError):
    """The host's own tokenizer fails at the text."""

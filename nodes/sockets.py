"""The pack's own socket types. Saved workflows rely on these names."""

from comfy_api.latest import io

LLM = io.Custom("LLM4GEN_LLM")
ADAPTER = io.Custom("LLM4GEN_ADAPTER")
TRAINING_SET = io.Custom("LLM4GEN_TRAINING_SET")

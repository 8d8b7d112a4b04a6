"""The model half of LLM4GEN: plain PyTorch, no ComfyUI in it."""

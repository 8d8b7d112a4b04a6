"""The model half of LLM4GEN in plain PyTorch. Nothing in here imports ComfyUI."""

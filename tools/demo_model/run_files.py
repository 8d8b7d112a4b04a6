"""The files in the folder of a training run of the demo model, and how ComfyUI is started for it."""

JOB_STATE, FEATURES = "state.safetensors", "features"
START, CHECKPOINT = "start.safetensors", "clip_and_vae.safetensors"
UNET, ADAPTER = "unet.safetensors", "adapter.safetensors"
FIGURES, SHEETS = "figures.jsonl", "sheets"
# ComfyUI's own attention on a CPU is slower for so few cells.
ARGUMENTS = ("--cpu", "--use-pytorch-cross-attention")

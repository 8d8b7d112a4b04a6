"""Which files may hold weights, by their ending."""

PICKLES = (".pth", ".pt", ".bin")
SUFFIXES = (".safetensors", ".sft", *PICKLES)

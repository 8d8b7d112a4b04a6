"""Schemes of quantised weights that this pack cannot read, by the traces that they leave in a file.

What it can read is elsewhere: fp8 with a scale for each matrix in `fp8.py`, llama.cpp's encodings in `gguf.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# A scheme and the last parts of the names of its tensors. The first scheme that has left a trace is the file's: names
# that several schemes use come last.
SCHEMES = {
    "bitsandbytes in 4 bits": r"weight\.(nested_)?(absmax|quant_map)|weight\.quant_state\..*",
    "bitsandbytes in 8 bits": r"SCB|weight_format",
    "compressed-tensors": r"weight_(packed|shape|zero_point|global_scale)",
    "NVFP4": r"weight_scale_2",
    "MXFP4": r".*_proj_(blocks|scales)",
    "fp8 with a scale for each block": r"weight_scale_inv",
    "torchao": r"_?weight_(qdata|scale_and_zero)|_weight_(scale|zero_point)",
    "quanto": r"weight\._(data|scale|shift)(\..*)?",
    "HQQ": r"W_q",
    "AQLM": r"codebooks",
    "VPTQ": r"(res_)?centroids(\.weight)?",
    "SpQR": r"dense_weights",
    "QuIP#": r"Qidxs(_.*)?",
    "ExLlamaV2": r"q_(groups|invperm|scale_max)",
    "ExLlamaV3": r"trellis",
    "EETQ": r"weight_scales",
    "HIGGS": r"tables2",
    "GPTQ": r"g_idx",
    "AWQ": r"qzeros",
    "an int4 scheme such as GPTQ or AWQ": r"qweight|dqweight",
}
# Scales that `fp8.py` did not take, because they are not one number for a matrix. Several schemes have them.
OTHER_SCALES = re.compile(r"(.*\.)?(scale_weight|weight_scale|input_scale_ub)")
# Where the classes of tensors come from that such a scheme saves in pickles.
LIBRARIES = {
    "torchao": "torchao",
    "quanto": "quanto",
    "optimum": "quanto",
    "hqq": "HQQ",
    "bitsandbytes": "bitsandbytes",
}
ADVICE = (
    "Download the model in bf16, fp16 or fp32 (.safetensors) as its publisher made it, or a .gguf file of it."
)


def find_scheme(names: Iterable[str]) -> tuple[str, list[str]] | None:
    """The scheme that has left a trace among the names of tensors, and the names that show it; None if none has."""
    names = list(names)
    for scheme, trace in SCHEMES.items():
        pattern = re.compile(rf"(.*\.)?({trace})")
        if found := [name for name in names if pattern.fullmatch(name)]:
            return scheme, found
    return None


def scheme_of_class(path: str) -> str | None:
    """The scheme that saves tensors of a Python class. path: such as `torchao.dtypes.AffineQuantizedTensor`."""
    return LIBRARIES.get(path.partition(".")[0])

"""The models that are measured, with random weights: their sizes, and where their files are. Works without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Increase it when the files change, so that files of an older version are not used.
VERSION = 2
PICKLE, FP32, BF16 = "fp32 pickle", "fp32", "bf16"
# Kind of file → the file's name in a folder of its own. All others are made from fp32, which is therefore the first.
FILES = {
    FP32: "model.safetensors",
    PICKLE: "pytorch_model.bin",
    **dict.fromkeys((BF16, "fp16", "fp8"), "model.safetensors"),
    **{f"GGUF {encoding}": f"model-{encoding}.gguf" for encoding in ("Q8_0", "Q4_K")},
}
ADAPTER = f"bench-v{VERSION}-projector.pth"
HEAD_WIDTH = 64


@dataclass(frozen=True)
class Model:
    """An LLM that reads T5's tokens.

    config: its config.json.
    prefix: stands before transformers' tensor names in its files (for the T5: RankGen's names).
    place:  the beginning of the paths of its folders, one for each kind of file.
    count:  about how many weights it has.
    """

    config: dict[str, Any]
    prefix: str
    place: str
    count: int

    @property
    def is_t5(self) -> bool:
        return self.config["model_type"] == "t5"

    def file(self, kind: str) -> Path:
        """The weights as a kind of file. A config.json and a tokenizer are beside them."""
        return Path(f"{self.place}-{kind.replace(' ', '-')}", FILES[kind])

    def size(self, kind: str) -> float:
        """About how many bytes a kind of file has."""
        return self.count * {"fp16": 2, BF16: 2, "fp8": 1.1, "GGUF Q8_0": 1.1, "GGUF Q4_K": 0.7}.get(kind, 4)


@dataclass(frozen=True)
class Sizes:
    """The sizes of both models.

    width:             of the hidden states of both.
    t5_mlp, llama_mlp: inner width of the feed-forward.
    vocabulary:        rows of the token embedding, as in every published T5: the tokenizer needs them.
    """

    width: int
    t5_layers: int
    t5_mlp: int
    llama_layers: int
    llama_mlp: int
    vocabulary: int = 32128

    def models(self, folder: Path) -> dict[str, Model]:
        """The two models by name. folder: a ComfyUI folder `models`."""
        heads, square = self.width // HEAD_WIDTH, self.width**2
        words = self.vocabulary * self.width
        t5 = {
            "model_type": "t5", "vocab_size": self.vocabulary, "d_model": self.width, "d_kv": HEAD_WIDTH,
            "d_ff": self.t5_mlp, "num_heads": heads, "num_layers": self.t5_layers, "dropout_rate": 0.0,
            "feed_forward_proj": "gated-gelu",
        }  # fmt: skip
        llama = {
            "model_type": "llama", "vocab_size": self.vocabulary, "hidden_size": self.width,
            "intermediate_size": self.llama_mlp, "num_hidden_layers": self.llama_layers,
            "num_attention_heads": heads, "num_key_value_heads": max(1, heads // 8), "tie_word_embeddings": True,
            "max_position_embeddings": 2048, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
            "architectures": ["LlamaForCausalLM"],
        }  # fmt: skip
        t5_count = words + self.t5_layers * (4 * square + 3 * self.width * self.t5_mlp)
        llama_count = words + self.llama_layers * (3 * square + 3 * self.width * self.llama_mlp)
        place = f"{folder}/text_encoders/bench-v{VERSION}-{self.width}-wide"
        return {
            "t5": Model(t5, "t5_encoder.", f"{place}-t5-{self.t5_layers}-layers", t5_count),
            "llama": Model(llama, "model.", f"{place}-llama-{self.llama_layers}-layers", llama_count),
        }


# T5-XL, which RankGen is, and a Llama of 1.1 billion weights.
FULL = Sizes(width=2048, t5_layers=24, t5_mlp=5120, llama_layers=22, llama_mlp=5632)
# A block of Q4_K holds 256 weights of one row, so narrower matrices could not be written in it.
QUICK = Sizes(width=256, t5_layers=2, t5_mlp=512, llama_layers=2, llama_mlp=512)

"""Measures the way from a file to the first conditioning, by kind of file: the published way reads the pickle.

    python tools/dev.py setup && .host/venv/bin/python tools/bench_files.py

On the weights that `bench.py` makes, and on smaller files made of them: fp8 by `convert.py`, GGUF by the package
`gguf`. Every way has a process of its own, started anew for each round; all files are in the system's cache.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from statistics import median

import torch
from bench import NEGATIVE, PUBLISHED, SHORT, WORDS, Setting, difference, running, say
from bench_report import FIRST, Variant, machine
from bench_weights import LAYERS, ensure_files
from convert import convert
from host import COMFYUI_DIR, HOST_DIR
from pack import make_importable
from safetensors import safe_open
from safetensors.torch import load_file
from safetensors_writer import in_one_step

COLUMNS = (
    "way",
    "file",
    "GB",
    "load, s",
    "first, s",
    "together, times faster",
    "peak, GB",
    "relative difference",
)
GGUF_NAMES = {
    "shared": "token_embd",
    "encoder.final_layer_norm": "enc.output_norm",
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias": "enc.blk.0.attn_rel_b",
    "layer.0.layer_norm": "attn_norm",
    "layer.0.SelfAttention.q": "attn_q",
    "layer.0.SelfAttention.k": "attn_k",
    "layer.0.SelfAttention.v": "attn_v",
    "layer.0.SelfAttention.o": "attn_o",
    "layer.1.layer_norm": "ffn_norm",
    "layer.1.DenseReluDense.wi_0": "ffn_gate",
    "layer.1.DenseReluDense.wi_1": "ffn_up",
    "layer.1.DenseReluDense.wo": "ffn_down",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="four layers: to try the tool itself")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--models", type=Path, default=HOST_DIR / "bench", help="where the weights are kept")
    options = parser.parse_args()
    make_importable()
    files = ensure_files(options.models.resolve(), 4 if options.quick else LAYERS)
    if files.pickle is None:
        raise SystemExit("no room on the disk for a pickle of the weights, which the published way reads.")
    comfyui = Path(os.environ.get("LLM4GEN_COMFYUI", COMFYUI_DIR))
    setting = Setting(files, comfyui.resolve(), options.threads, options.rounds)
    variants = [
        Variant(PUBLISHED, "fp32 pickle", files.pickle, None),
        Variant("ours, fp32", "fp32 pickle", files.pickle, "fp32"),
        Variant("ours, fp32", "fp32", files.fp32, "fp32"),
        Variant("ours, bf16", "fp32", files.fp32, "bf16"),
        Variant("ours, auto", "bf16", files.bf16, "auto"),
        Variant("ours, auto", "fp8", ensure_fp8(files.bf16), "auto"),
        *(
            Variant("ours, auto", f"GGUF {kind}", ensure_gguf(files.bf16, kind), "auto")
            for kind in ("Q8_0", "Q4_0")
        ),
    ]
    print(table(variants, [measure_round(variants, setting, number) for number in range(options.rounds)]))
    print("\n" + "\n".join(machine(options.rounds, options.threads, 0.0)))


Measured = dict[Variant, tuple[float, float, int, float]]


def measure_round(variants: list[Variant], setting: Setting, number: int) -> Measured:
    """By variant: seconds to load and to the first conditioning of both prompts, peak bytes, difference."""
    found: Measured = {}
    prompt = SHORT.format(WORDS[0])
    with tempfile.TemporaryDirectory() as scratch:
        for place, variant in enumerate(variants):
            say(f"Round {number + 1}: {variant.way} from {variant.weights} …")
            with running([variant], setting) as [worker]:
                load = worker.ask("load")["seconds"]
                worker.ask("prepare")
                save = str(Path(scratch, str(place)))
                reply = worker.ask("context", positive=prompt, negative=NEGATIVE, which=FIRST, save=save)
                peak = worker.ask("peak")["peak"]
            _, relative = difference(load_file(Path(scratch, "0")), load_file(save))
            found[variant] = (load, reply["seconds"], peak, relative)
    return found


def table(variants: list[Variant], rounds: list[Measured]) -> str:
    rows = [COLUMNS, ("---",) * 2 + ("---:",) * (len(COLUMNS) - 2)]
    for variant in variants:
        load, first, peak, relative = (median(found[variant][i] for found in rounds) for i in range(4))
        ratio = median(sum(found[variants[0]][:2]) / sum(found[variant][:2]) for found in rounds)
        size = variant.encoder.stat().st_size / 1e9
        cells = (f"{size:.2f}", f"{load:.1f}", f"{first:.1f}", f"{ratio:.1f}", f"{peak / 1e9:.2f}")
        rows.append((variant.way, variant.weights, *cells, f"{relative:.1e}" if variant.dtype else ""))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def ensure_fp8(source: Path) -> Path:
    target = source.with_name(f"{source.stem}-fp8.safetensors")
    if not target.is_file():
        convert(source, target, "fp8", False, lambda: None)
    return target


def ensure_gguf(source: Path, kind: str) -> Path:
    """The matrices quantised as `kind`, the rest as they are."""
    import gguf  # noqa: PLC0415

    target = source.with_name(f"{source.stem}-{kind}.gguf")
    if target.is_file():
        return target
    say(f"Making {target.name} …")
    encoding = gguf.GGMLQuantizationType[kind]
    with in_one_step(target, source.stat().st_size) as file:
        writer = gguf.GGUFWriter(file.name, "t5encoder")
        with safe_open(source, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118
                if name == "projection.weight":
                    continue
                values = weights.get_tensor(name).float().numpy()
                if values.ndim == 2 and "relative" not in name:
                    data = gguf.quants.quantize(values, encoding)
                    writer.add_tensor(gguf_name(name), data, raw_dtype=encoding)
                else:
                    writer.add_tensor(gguf_name(name), values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return target


def gguf_name(name: str) -> str:
    """RankGen's name → llama.cpp's."""
    stem = name.removeprefix("t5_encoder.").removesuffix(".weight")
    if stem in GGUF_NAMES:
        return f"{GGUF_NAMES[stem]}.weight"
    _, _, index, part = stem.split(".", 3)
    return f"enc.blk.{index}.{GGUF_NAMES[part]}.weight"


if __name__ == "__main__":
    main()

"""What the LLM's words look at: the Cross-Adapter's attention as a picture."""

from __future__ import annotations

import numpy as np
import torch
from comfy_api.latest import io

from .attention_map import AttentionMap, Word, percent
from .condition import models, prompt
from .fused_clip import SD15, FusedCLIP, Fusion
from .tokens_shown import of_clip, of_llm

AVERAGE, EACH = "average", "each"
MOST_ROWS = 64


class AttentionMapNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LLM4GEN_Attention",
            display_name="LLM4GEN Attention Map",
            category="LLM4GEN",
            description="Draws what the LLM's words look at: the Cross-Adapter's attention, the LLM's tokens (rows) "
            "against CLIP's (columns). Where hooks schedule CLIP, the first entry of the schedule is drawn.",
            search_aliases=["attention", "heatmap", "cross attention", "what the LLM looks at", "LLM4GEN"],
            inputs=[
                *models(),
                prompt(),
                io.Combo.Input(
                    "heads",
                    options=[AVERAGE, EACH],
                    default=AVERAGE,
                    optional=True,
                    tooltip="average: one map, the mean of the adapter's attention heads. each: a map for every "
                    "head, all on one scale.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="For Preview Image and Save Image.")],
        )

    @classmethod
    def execute(cls, clip, llm, adapter, text, heads=AVERAGE) -> io.NodeOutput:
        picture = attention_map(FusedCLIP.around(clip, Fusion(llm, adapter)), text, heads).draw()
        return io.NodeOutput(torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)[None])


def attention_map(fused: FusedCLIP, text: str, heads: str) -> AttentionMap:
    tokens = fused.tokenize(text, return_word_ids=True)
    weights = fused.attention(tokens).cpu().numpy()
    rows, columns = of_llm(fused, text), of_clip(fused, tokens[SD15][0])
    weights = weights[:, : len(rows)]
    each = heads == EACH
    shown = weights if each else weights.mean(0, keepdims=True)
    which = "Each" if each else "The average"
    return AttentionMap(
        weights=shown[:, :MOST_ROWS, : len(columns)],
        rows=rows[:MOST_ROWS],
        columns=columns,
        names=[f"head {number + 1}" for number in range(len(weights))] if each else [""],
        title=f"“{' '.join(text.split())}”" if text.strip() else "(empty prompt)",
        caption=f"What the LLM's tokens (rows) see of CLIP's (columns). {which} of {len(weights)} heads.",
        notes=notes(weights.mean((0, 1)), len(rows), columns),
    )


def notes(mean: np.ndarray, rows: int, columns: list[Word]) -> list[str]:
    """Where the attention goes on average, and what is not drawn. mean: of all rows and heads, by column."""
    end = len(columns)
    parts = np.split(mean, [1, end - 1, end])
    places = "<start>", "the words", "<end>", f"CLIP's padding ({len(parts[-1])} tokens, not drawn)"
    goes = [
        f"{percent(part.sum())} to {place}" for part, place in zip(parts, places, strict=True) if len(part)
    ]
    said = [f"Of a row's attention go on average {', '.join(goes[:-1])} and {goes[-1]}."]
    return said + [f"Drawn are the first {MOST_ROWS} of the LLM's {rows} tokens."] * (rows > MOST_ROWS)

"""The node LLM4GEN Attention Map: the Cross-Adapter's attention weights as a picture."""

from __future__ import annotations

import numpy as np
import torch
from comfy_api.latest import io

from ..models.errors import UnreadableText
from .condition import model_inputs, text_input
from .drawing.attention_map import AttentionMap, Label, percent
from .drawing.token_labels import clip_labels, llm_labels
from .fused_clip import FusedCLIP
from .fusion import Fusion

AVERAGE, EACH = "average", "each"  # choices of the input `heads`; saved workflows hold these strings
MOST_ROWS = 64


class AttentionMapNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LLM4GEN_Attention",
            display_name="LLM4GEN Attention Map",
            category="LLM4GEN",
            description="Draws the Cross-Adapter's attention: how much each of the LLM's tokens (rows) attends to each "
            "of CLIP's tokens (columns). Where hooks schedule CLIP, the first entry of the schedule is drawn.",
            search_aliases=["attention", "heatmap", "cross attention", "what the LLM looks at", "LLM4GEN"],
            inputs=[
                *model_inputs(),
                text_input(),
                io.Combo.Input(
                    "heads",
                    options=[AVERAGE, EACH],
                    default=AVERAGE,
                    optional=True,
                    tooltip="average: one map, the mean of the adapter's attention heads. each: a map for every head, "
                    "all on one colour scale.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="Connect it to Preview Image or Save Image.")],
        )

    @classmethod
    def execute(cls, clip, llm, adapter, text, heads=AVERAGE) -> io.NodeOutput:
        picture = attention_map(FusedCLIP.around(clip, Fusion(llm, adapter)), text, heads).draw()
        return io.NodeOutput(torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)[None])


def attention_map(fused: FusedCLIP, text: str, heads: str) -> AttentionMap:
    """heads: AVERAGE or EACH. Raises: WidthMismatch, WrongRecipe, UnreadableText."""
    tokens = fused.tokenize(text, return_word_ids=True)
    weights = fused.attention_weights(tokens).cpu().numpy()
    if not np.isfinite(weights).all():
        raise UnreadableText(
            "The attention of this prompt is not finite, so it cannot be drawn. Look for a weight such as (word:nan), "
            "(word:inf) or a very large number, and give the word an ordinary weight, such as 1.2."
        )
    rows = llm_labels(fused.fusion.llm.llm.tokenizer, fused.fusion.adapter.recipe, text)
    columns = clip_labels(*fused.text_of(tokens))
    weights = weights[:, : len(rows)]
    shown = weights if heads == EACH else weights.mean(0, keepdims=True)
    which = "Each" if heads == EACH else "The average"
    return AttentionMap(
        weights=shown[:, :MOST_ROWS, : len(columns)],
        rows=rows[:MOST_ROWS],
        columns=columns,
        names=[f"head {number + 1}" for number in range(len(weights))] if heads == EACH else [""],
        title=f"“{' '.join(text.split())}”" if text.strip() else "(empty prompt)",
        caption=f"How the LLM's tokens (rows) attend to CLIP's (columns). {which} of {len(weights)} heads.",
        notes=notes(weights.mean((0, 1)), len(rows), columns),
    )


def notes(mean: np.ndarray, rows: int, columns: list[Label]) -> list[str]:
    """Sentences that say where the attention goes, and what is not drawn.

    mean: [n], the attention that each CLIP token gets, averaged over heads and rows. rows: how many there are.
    """
    end = len(columns)
    start_token, words, end_token, padding = np.split(mean, [1, end - 1, end])
    parts = {
        "<start>": start_token,
        "the words": words,
        "<end>": end_token,
        f"CLIP's padding ({len(padding)} tokens, not drawn)": padding,
    }
    shares = [f"{percent(part.sum())} to {name}" for name, part in parts.items() if len(part)]
    sentences = [f"On average a row gives {', '.join(shares[:-1])} and {shares[-1]}."]
    if rows > MOST_ROWS:
        sentences.append(f"Only the first {MOST_ROWS} of the LLM's {rows} tokens are drawn.")
    return sentences

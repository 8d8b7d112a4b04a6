// Advice on nodes of other packs, which are known by their types only.

import { fusedClip, nodesOf, value } from "./graph.js";
import { CHUNKS } from "./meter.js";

// They encode tokens of CLIP's alone. Other nodes that do so are noticed while they run, unless they call the text
// encoder inside the CLIP, as Easy-Use does.
export const ENCODES_CLIP_ALONE = [
  "BNK_CLIPTextEncodeAdvanced",
  "BNK_CutoffBasePrompt",
  "WildcardEncode //Inspire",
  "CLIPTextEncode (BlenderNeko Advanced + NSP)",
  "easy fullLoader",
];
// They repeat the tokens of their regions until all have one length.
const COUPLES = ["AttentionCouplePPM", "AttentionCouple|cgem156", "Attention couple", "Comfy Couple"];

/** Lines for a node that encodes CLIP's tokens alone: that the LLM's half of its fused CLIP is lost. */
export function loses(node, _report, texts) {
  const fused = fusedClip(node);
  return fused && value(fused, "strength") !== 0 ? [{ text: texts.loses, tone: "warning" }] : [];
}

/** Lines for a node that fuses: that attention couple may need too much memory for prompts in chunks. */
export function couple(node, _report, texts) {
  const isCoupled = nodesOf(node.graph?.rootGraph).some((other) => COUPLES.includes(other.type));
  const inChunks = value(node, "long_prompt") === CHUNKS;
  return isCoupled && inChunks ? [{ text: texts.couple, tone: "warning" }] : [];
}

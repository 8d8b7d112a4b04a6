// The token meter: how much of a prompt CLIP and the LLM will read, and which part of it is cut off.

import { ADAPTER_LOADER, CONDITIONING, ENCODER_LOADER, FUSE, fusedClip, isLinked, loaded, source, value } from "./graph.js";
import { Question } from "./server.js";
import { fill } from "./texts.js";

export const CHUNKS = "chunks of 77"; // the choice of `long_prompt` that cuts nothing off
const SHOWN = 40; // characters shown of the text that is cut off
const LONGEST = 20_000; // characters of both texts together; the server refuses longer ones
const CHANGES = /[{}]|\/\/|\/\*/; // {a|b} and comments, which the front end rewrites when the graph runs
const questions = new WeakMap();

/** The lines under a prompt. */
export function meter(node, _report, texts) {
  const fused = [CONDITIONING, FUSE].includes(node.comfyClass) ? node : fusedClip(node);
  const text = fused && value(node, "text");
  if (typeof text !== "string") return [];
  const llmText = value(node, "llm_text");
  const typed = text + (llmText ?? "");
  if (typed.length > LONGEST) return [];
  if (!questions.has(node)) questions.set(node, new Question("/llm4gen/tokens"));
  const question = questions.get(node);
  question.put({
    text,
    llm_text: typeof llmText === "string" ? llmText : null,
    encoder: loaded(fused, "llm", ENCODER_LOADER, "encoder_name"),
    adapter: loaded(fused, "adapter", ADAPTER_LOADER, "adapter_name"),
  });
  // No count where only the run can tell the LLM's text or the adapter's recipe, as behind a node that trains it, and
  // none with strength 0, where the LLM reads nothing.
  const isUnread =
    (isLinked(node, "llm_text") && typeof llmText !== "string") ||
    (source(fused, "adapter")?.comfyClass ?? ADAPTER_LOADER) !== ADAPTER_LOADER ||
    value(fused, "strength") === 0;
  const about = CHANGES.test(typed) ? "≈ " : "";
  // ComfyUI's tokenizer fails on a text with half a syntax in it, as while the user types: then there is no count.
  if (!question.answer?.clip) return [];
  const parts = count(question.answer, value(fused, "long_prompt") === CHUNKS, isUnread, texts);
  const shown = node.comfyClass === FUSE ? [parts.llm] : [parts.clip, parts.llm];
  const counts = shown.flatMap((part) => part.count);
  return counts.length ? [{ text: about + counts.join(" · ") }, ...shown.flatMap((part) => part.warnings)] : [];
}

/** The count and the warnings of each half. */
function count({ clip, llm, note }, inChunks, isUnread, texts) {
  const limit = inChunks ? clip.limit * Math.max(1, Math.ceil(clip.tokens / clip.limit)) : clip.limit;
  // A note means that the chosen files could not be read, so the count would be another LLM's. Their loader says why.
  const isRead = llm && !isUnread && !note;
  return {
    clip: {
      count: [`CLIP ${clip.tokens}/${limit}`],
      warnings: clip.cut && !inChunks ? [warning(texts.cut, "CLIP", clip.cut)] : [],
    },
    llm: {
      count: isRead ? [`LLM ${llm.tokens}/${llm.limit}`] : [],
      warnings: isRead && llm.cut ? [warning(texts.cut, "LLM", llm.cut)] : [],
    },
  };
}

function warning(sentence, half, cut) {
  return { text: fill(sentence, { half, words: beginning(cut) }), tone: "warning" };
}

/** The first words of a text, or its first letters if it has no spaces. Isolated from text that runs the other way. */
function beginning(text) {
  const plain = text.trim().replace(/\s+/g, " ");
  const letters = [...plain];
  if (letters.length <= SHOWN) return `\u2068${plain}\u2069`;
  const start = letters.slice(0, SHOWN).join("");
  return `\u2068${start.replace(/(.{20,})\s\S*$/u, "$1")}…\u2069`;
}

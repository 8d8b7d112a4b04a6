// The token meter: how much of a prompt CLIP and the LLM will read, and which part of it is cut off.

import {
  ADAPTER_LOADER,
  CONDITIONING,
  ENCODER_LOADER,
  FUSE,
  SDXL_TEXT_ENCODE,
  fusedClip,
  isLinked,
  loaded,
  source,
  value,
} from "./graph.js";
import { Question } from "./server.js";
import { fill } from "./texts.js";

export const CHUNKS = "chunks of 77"; // the choice of `long_prompt` that cuts nothing off
const SHOWN = 40; // characters shown of the text that is cut off
const LONGEST = 20_000; // characters of both texts together; the server refuses longer ones
const CHANGES = /[{}]|\/\/|\/\*/; // {a|b} and comments, which the front end rewrites when the graph runs
// The name of a prompt → the CLIP that reads it. Where a node has several prompts, the LLM reads the first.
const ONE_PROMPT = { text: "CLIP" };
const PROMPTS = { [SDXL_TEXT_ENCODE]: { text_g: "CLIP-G", text_l: "CLIP-L" } };
const questions = new WeakMap(); // node → the name of a prompt → its question

/** The lines under a node's prompts. */
export function meter(node, _report, texts) {
  const fused = [CONDITIONING, FUSE].includes(node.comfyClass) ? node : fusedClip(node);
  if (!fused) return [];
  const prompts = Object.entries(PROMPTS[node.comfyClass] ?? ONE_PROMPT);
  const counted = prompts.map(([name, half]) => countPrompt(node, fused, name, half, texts));
  const clips = node.comfyClass === FUSE ? [] : counted.flatMap((parts) => parts?.clip ?? []);
  const shown = [...clips, ...(counted[0] ? [counted[0].llm] : [])];
  const counts = shown.flatMap((part) => part.count);
  const about = counted.some((parts) => parts?.isAbout) ? "≈ " : "";
  return counts.length ? [{ text: about + counts.join(" · ") }, ...shown.flatMap((part) => part.warnings)] : [];
}

/** The count and the warnings of each half for one prompt, and whether the count is not exact; null for no count. */
function countPrompt(node, fused, name, half, texts) {
  const text = value(node, name);
  if (typeof text !== "string") return null;
  const llmText = value(node, "llm_text");
  const typed = text + (llmText ?? "");
  if (typed.length > LONGEST) return null;
  if (!questions.has(node)) questions.set(node, {});
  const question = (questions.get(node)[name] ??= new Question("/llm4gen/tokens"));
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
  // ComfyUI's tokenizer fails on a text with half a syntax in it, as while the user types: then there is no count.
  if (!question.answer?.clip) return null;
  const parts = count(question.answer, half, value(fused, "long_prompt") === CHUNKS, isUnread, texts);
  return { ...parts, isAbout: CHANGES.test(typed) };
}

/** The count and the warnings of each half. */
function count({ clip, llm, note }, half, inChunks, isUnread, texts) {
  const limit = inChunks ? clip.limit * Math.max(1, Math.ceil(clip.tokens / clip.limit)) : clip.limit;
  // A note means that the chosen files could not be read, so the count would be another LLM's. Their loader says why.
  const isRead = llm && !isUnread && !note;
  return {
    clip: {
      count: [`${half} ${clip.tokens}/${limit}`],
      warnings: clip.cut && !inChunks ? [warning(texts.cut, half, clip.cut)] : [],
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

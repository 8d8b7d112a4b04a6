// How much of a prompt CLIP and the LLM will read, and what they will not.

import { ADAPTER_LOADER, CONDITIONING, ENCODER_LOADER, fusedClip, isLinked, loaded, value } from "./graph.js";
import { Question } from "./server.js";
import { fill } from "./texts.js";

const CHUNKS = "chunks of 77"; // the choice of `long_prompt` with which CLIP loses nothing
const SHOWN = 40; // characters of what is cut
const LONGEST = 20_000; // characters that are counted, of both texts together: the server refuses longer ones
const CHANGES = /[{}]|\/\/|\/\*/; // {a|b} and comments: the front end rewrites them when the graph is run
const questions = new WeakMap();

/** The lines under a prompt. */
export function meter(node, _report, words) {
  const fused = node.comfyClass === CONDITIONING ? node : fusedClip(node);
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
  // Words for the LLM that only a run can tell: no count stands for them. With strength 0 it reads nothing.
  const unread = (isLinked(node, "llm_text") && typeof llmText !== "string") || value(fused, "strength") === 0;
  const about = CHANGES.test(typed) ? "≈ " : "";
  // Of what the host fails at, half a syntax mostly, nothing is counted.
  return question.answer?.clip ? lines(question.answer, value(fused, "long_prompt") === CHUNKS, unread, about, words) : [];
}

function lines({ clip, llm, note }, inChunks, unread, about, words) {
  const limit = inChunks ? clip.limit * Math.max(1, Math.ceil(clip.tokens / clip.limit)) : clip.limit;
  const counts = [`CLIP ${clip.tokens}/${limit}`];
  // With a note, it was not counted as the chosen files would have it; what is wrong with them, their loader says.
  const isRead = llm && !unread && !note;
  if (isRead) counts.push(`LLM ${llm.tokens}/${llm.limit}`);
  const said = [{ text: about + counts.join(" · ") }];
  if (clip.cut && !inChunks) said.push(warning(words.cut, "CLIP", clip.cut));
  if (isRead && llm.cut) said.push(warning(words.cut, "LLM", llm.cut));
  return said;
}

function warning(sentence, half, cut) {
  return { text: fill(sentence, { half, words: beginning(cut) }), tone: "warning" };
}

/** A text's first few words, or letters where it has no spaces; apart from what is around it, which may run the other way. */
function beginning(text) {
  const plain = text.trim().replace(/\s+/g, " ");
  const letters = [...plain];
  if (letters.length <= SHOWN) return `\u2068${plain}\u2069`;
  const start = letters.slice(0, SHOWN).join("");
  return `\u2068${start.replace(/(.{20,})\s\S*$/u, "$1")}…\u2069`;
}

// What is wrong with the files before anything runs: none found, one that cannot be used, two that do not fit, a
// checkpoint of another kind, one that needs another beside it.

import {
  ADAPTER_LOADER,
  ENCODER_LOADER,
  NEW_ADAPTER,
  checkpointOf,
  isLinked,
  loaded,
  nodesOf,
  runs,
  source,
  value,
  widget,
} from "./graph.js";
import { Question } from "./server.js";
import { fill } from "./texts.js";

// What an adapter was trained with → what a node's type, or the name of a widget of it, must contain for it to be in
// use. A UNet that learnt as a whole may be in any checkpoint, so nothing can be told of it.
const BRINGERS = { lora: /lora/i, patches: /lora|merge/i };

const OTHER_LLM = "other_llm"; // the server's word for an LLM that is certainly not the one of the adapter

export const adviceOnEncoders = (node, report, texts) =>
  advice(widget(node, "encoder_name"), value(node, "encoder_name"), report.encoders, report.advice.text_encoders, texts);

export const adviceOnAdapters = (node, report, texts) =>
  advice(widget(node, "adapter_name"), value(node, "adapter_name"), report.adapters, report.advice.llm4gen, texts);

/** Lines for an adapter's loader: what it was trained with, as a warning where the graph cannot have it. */
export function companion(node, report, texts) {
  const needed = report.adapters.find((file) => file.name === value(node, "adapter_name"))?.trained_with;
  if (!needed) return [];
  const others = nodesOf(node.graph?.rootGraph ?? node.graph).filter(runs);
  const names = others.flatMap((other) => [other.type, ...(other.widgets ?? []).map((widget) => widget.name)]);
  const isMissing = needed in BRINGERS && !names.some((name) => BRINGERS[needed].test(name));
  return [{ text: texts[`needs_${needed}`], tone: isMissing ? "warning" : undefined }];
}

/** Lines for a loader: which file to get if its list is empty, or why the chosen file cannot be used. */
function advice(list, chosen, files, wanted, texts) {
  const choices = list?.options?.values;
  const isEmpty = choices?.length === 1 && choices[0] === wanted;
  if (isEmpty) return [warning(fill(texts.empty, { wanted }))];
  const file = files.find((file) => file.name === chosen);
  return file?.error || file?.reason ? [warning(file.error ?? file.reason)] : [];
}

/** Lines for a node that fuses: that its encoder and its adapter do not fit together, or may not. */
export function misfit(node, report, texts) {
  const encoder = loaded(node, "llm", ENCODER_LOADER, "encoder_name");
  const adapter = loaded(node, "adapter", ADAPTER_LOADER, "adapter_name");
  const pair = report.pairs.find((pair) => pair.encoder === encoder && pair.adapter === adapter);
  if (!pair) return [];
  if (!pair.fits) return [warning(fill(texts.misfit, { encoder, adapter }))];
  if (!pair.doubt) return [];
  const { llm } = report.adapters.find((file) => file.name === adapter);
  const text = fill(texts[pair.doubt], { encoder, adapter, llm: llm.name });
  return [pair.doubt === OTHER_LLM ? warning(text) : { text }];
}

/** Lines for a node that takes a CLIP and an adapter: that the checkpoint is of another kind than the adapter. */
export function otherKind(node, report, texts) {
  const checkpoint = checkpointOf(node);
  const adapter = adapterOf(node, report);
  const found = checkpoint && adapter ? kindOf(checkpoint, report) : null;
  if (!found?.width || !adapter.width || found.width === adapter.width) return [];
  const words = { checkpoint, kind: found.kind, width: found.width, adapter: adapter.name };
  if (!adapter.name) return [warning(fill(texts.other_context, words))];
  return [warning(fill(texts.other_kind, { ...words, wanted: report.kinds[adapter.width] ?? adapter.width }))];
}

/** The adapter that a node gets, { name, width }, without a name if it is a new one; null if that cannot be told. */
function adapterOf(node, report) {
  let input = "adapter";
  const seen = new Set(); // a graph that is being edited may contain a circle
  for (let from = source(node, input); from?.comfyClass === NEW_ADAPTER; from = source(node, input)) {
    if (seen.has(from)) return null;
    seen.add(from);
    if (!isLinked(from, "start_from")) return { width: Number(value(from, "context_width")) };
    [node, input] = [from, "start_from"];
  }
  const name = loaded(node, input, ADAPTER_LOADER, "adapter_name");
  const width = report.adapters.find((file) => file.name === name)?.clip_width;
  return width ? { name, width } : null;
}

const asked = new Map(); // the name of a checkpoint → the question for its kind, and the report with which it was put

/** The kind of a checkpoint, asked anew with each report; null until the server has answered for this one. */
function kindOf(checkpoint, report) {
  const before = asked.get(checkpoint);
  if (before?.report === report) return before.question.answer;
  const question = new Question("/llm4gen/checkpoint");
  question.answer = before?.question.answer ?? null; // otherwise the line would vanish for a moment with each R
  question.put({ checkpoint });
  asked.set(checkpoint, { question, report });
  return question.answer;
}

const warning = (text) => ({ text, tone: "warning" });

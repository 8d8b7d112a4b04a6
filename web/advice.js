// What is wrong with the files before anything runs: none found, one that cannot be used, two that do not fit.

import { ADAPTER_LOADER, ENCODER_LOADER, loaded, value, widget } from "./graph.js";
import { fill } from "./texts.js";

export const adviceOnEncoders = (node, report, texts) =>
  advice(widget(node, "encoder_name"), value(node, "encoder_name"), report.encoders, report.advice.text_encoders, texts);

export const adviceOnAdapters = (node, report, texts) =>
  advice(widget(node, "adapter_name"), value(node, "adapter_name"), report.adapters, report.advice.llm4gen, texts);

/** Lines for a loader: which file to get if its list is empty, or why the chosen file cannot be used. */
function advice(list, chosen, files, wanted, texts) {
  const choices = list?.options?.values;
  const isEmpty = choices?.length === 1 && choices[0] === wanted;
  if (isEmpty) return [warning(fill(texts.empty, { wanted }))];
  const file = files.find((file) => file.name === chosen);
  return file?.error || file?.reason ? [warning(file.error ?? file.reason)] : [];
}

/** Lines for a node that fuses: that its encoder and its adapter do not fit together. */
export function misfit(node, report, texts) {
  const encoder = loaded(node, "llm", ENCODER_LOADER, "encoder_name");
  const adapter = loaded(node, "adapter", ADAPTER_LOADER, "adapter_name");
  const pair = report.pairs.find((pair) => pair.encoder === encoder && pair.adapter === adapter);
  return pair && !pair.fits ? [warning(fill(texts.misfit, { encoder, adapter }))] : [];
}

const warning = (text) => ({ text, tone: "warning" });

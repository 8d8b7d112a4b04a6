// What is wrong with the files before anything is run: none there, one that cannot be used, two that do not fit.

import { ADAPTER_LOADER, ENCODER_LOADER, loaded, value, widget } from "./graph.js";
import { fill } from "./texts.js";

export const adviceOnEncoders = (node, report, words) =>
  advice(widget(node, "encoder_name"), value(node, "encoder_name"), report.encoders, report.advice.text_encoders, words);

export const adviceOnAdapters = (node, report, words) =>
  advice(widget(node, "adapter_name"), value(node, "adapter_name"), report.adapters, report.advice.llm4gen, words);

/** Under a loader: what to get where its list is empty, and why the file chosen cannot be used. */
function advice(list, chosen, files, wanted, words) {
  const choices = list?.options?.values;
  const isEmpty = choices?.length === 1 && choices[0] === wanted;
  if (isEmpty) return [warning(fill(words.empty, { wanted }))];
  const file = files.find((file) => file.name === chosen);
  return file?.error || file?.reason ? [warning(file.error ?? file.reason)] : [];
}

/** Under what fuses the two: that they cannot be. */
export function misfit(node, report, words) {
  const encoder = loaded(node, "llm", ENCODER_LOADER, "encoder_name");
  const adapter = loaded(node, "adapter", ADAPTER_LOADER, "adapter_name");
  const pair = report.pairs.find((pair) => pair.encoder === encoder && pair.adapter === adapter);
  return pair && !pair.fits ? [warning(fill(words.misfit, { encoder, adapter }))] : [];
}

const warning = (text) => ({ text, tone: "warning" });

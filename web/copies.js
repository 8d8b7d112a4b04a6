// An adapter in another format: a workflow names the published projector.pth, the folder holds projector.safetensors.
//
// The server would find the copy by itself, but the front end reports a file as missing that it does not list.

import { ADAPTER_LOADER, widget } from "./graph.js";

const FORMAT = /\.(safetensors|sft|pth|pt|bin)$/i; // as in the server's models/files/formats.py

/** Chooses in an adapter's loader, instead of a file that is not listed, the only one of its name in another format. */
export function chooseCopy(node) {
  const list = node.comfyClass === ADAPTER_LOADER ? widget(node, "adapter_name") : undefined;
  const files = list?.options?.values;
  if (!Array.isArray(files) || files.includes(list.value)) return;
  const copies = files.filter((file) => stem(file) === stem(list.value));
  if (copies.length === 1) list.value = copies[0];
}

const stem = (file) => String(file).replaceAll("\\", "/").replace(FORMAT, "");

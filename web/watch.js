// Looks at the nodes that are open, a few times a second, and keeps what is said under each of them true.
//
// It looks instead of listening: a prompt, a loader's file or a link may change by hand, by undo, by another
// extension or inside a subgraph, in two renderings, and no one event tells of all. A look costs microseconds;
// what it asks of the server, server.js limits.

import { app } from "../../scripts/app.js";
import { adviceOnAdapters, adviceOnEncoders, misfit } from "./advice.js";
import { ADAPTER_LOADER, CONDITIONING, ENCODER_LOADER, FUSED_CLIP, TEXT_ENCODE, runs } from "./graph.js";
import { meter } from "./meter.js";
import { show } from "./note.js";
import { get } from "./server.js";
import { texts } from "./texts.js";

const PERIOD = 150; // ms
const SAYINGS = {
  [CONDITIONING]: [misfit, meter],
  [FUSED_CLIP]: [misfit],
  [TEXT_ENCODE]: [meter],
  [ENCODER_LOADER]: [adviceOnEncoders],
  [ADAPTER_LOADER]: [adviceOnAdapters],
};
let report = null;

/** Reads anew what the server has found in the model folders. */
export async function readReport() {
  report = (await get("/llm4gen/report")) ?? report;
}

/** Starts to look, for as long as the page is open; not at all where the server cannot answer. */
export async function watch() {
  if (typeof app.canvas?.graph?.getNodeById !== "function") return;
  readReport().then(() => report && setInterval(look, PERIOD));
}

function look() {
  if (document.hidden) return;
  const words = texts();
  for (const node of app.canvas.graph?.nodes ?? []) {
    const sayings = SAYINGS[node.comfyClass ?? node.type];
    if (sayings) show(node, runs(node) ? sayings.flatMap((say) => say(node, report, words)) : []);
  }
}

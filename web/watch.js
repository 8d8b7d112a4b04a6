// Looks at the nodes of the open graph several times a second, and updates the lines under each of them.
//
// It polls because no single event covers all changes: a prompt, a loader's file or a link may change by hand, by
// undo, by another extension or inside a subgraph, and the front end has two renderings. A look costs microseconds,
// and server.js limits the requests.

import { app } from "../../scripts/app.js";
import { adviceOnAdapters, adviceOnEncoders, companion, misfit, otherKind } from "./advice.js";
import {
  ADAPTER_LOADER,
  CONDITIONING,
  ENCODER_LOADER,
  FUSE,
  FUSED_CLIP,
  REFINER_TEXT_ENCODE,
  SDXL_TEXT_ENCODE,
  TEXT_ENCODE,
  TRAINING_SET,
  runs,
} from "./graph.js";
import { meter } from "./meter.js";
import { show } from "./note.js";
import { ENCODES_CLIP_ALONE, couple, loses } from "./packs.js";
import { get } from "./server.js";
import { texts } from "./texts.js";

const PERIOD = 150; // ms
// Node type → functions that return the lines under such a node.
const LINES = {
  [CONDITIONING]: [misfit, otherKind, couple, meter],
  [FUSED_CLIP]: [misfit, otherKind, couple],
  [TRAINING_SET]: [misfit, otherKind],
  [FUSE]: [misfit, meter],
  [TEXT_ENCODE]: [meter],
  [SDXL_TEXT_ENCODE]: [meter],
  [REFINER_TEXT_ENCODE]: [meter],
  [ENCODER_LOADER]: [adviceOnEncoders],
  [ADAPTER_LOADER]: [adviceOnAdapters, companion],
  ...Object.fromEntries(ENCODES_CLIP_ALONE.map((type) => [type, [loses]])),
};
let report = null;
let polling = null;

/**
 * Asks the server which files it finds in the model folders. From the first answer on, the notes are shown for as long
 * as the page is open.
 */
export async function readReport() {
  if (typeof app.canvas?.graph?.getNodeById !== "function") return;
  report = (await get("/llm4gen/report")) ?? report;
  if (report) polling ??= setInterval(look, PERIOD);
}

function look() {
  if (document.hidden) return;
  const sentences = texts();
  for (const node of app.canvas.graph?.nodes ?? []) {
    const sources = LINES[node.comfyClass ?? node.type];
    if (sources) show(node, runs(node) ? sources.flatMap((lines) => lines(node, report, sentences)) : []);
  }
}

// Notices that the server sends while a workflow runs, as messages in a corner of the page.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { texts } from "./texts.js";

const EVENT = "llm4gen.notice"; // its data: { kind: a key of the texts, node: an execution id, such as "7" or "12:7" }
const LIFE = 30_000; // ms

export function listen() {
  api.addEventListener(EVENT, ({ detail }) => {
    const text = texts()[detail.kind];
    const title = titleOf(detail.node) ?? `#${detail.node}`;
    app.extensionManager?.toast?.add({ severity: "warn", summary: title, detail: text, life: LIFE });
  });
}

/** The title of a node by its execution id, which leads through subgraphs from the outermost graph. */
function titleOf(id) {
  let graph = app.graph?.rootGraph ?? app.graph;
  let node = null;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(part);
    graph = node?.subgraph;
  }
  return node?.title;
}

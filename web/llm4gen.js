// LLM4GEN's part of the front end. This file registers it; the others do nothing when the page imports them.

import { app } from "../../scripts/app.js";
import { chooseCopy } from "./copies.js";
import { nodesOf } from "./graph.js";
import { listen } from "./notices.js";
import { readReport } from "./watch.js";

app.registerExtension({
  name: "LLM4GEN",
  setup() {
    listen();
    readReport(); // not waited for: on a slow drive it takes seconds, and the page would open later
  },
  loadedGraphNode: chooseCopy,
  refreshComboInNodes() {
    nodesOf(app.graph?.rootGraph ?? app.graph).forEach(chooseCopy);
    return readReport();
  },
});

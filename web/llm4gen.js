// LLM4GEN's part of the front end. Registers it, and nothing else: the host imports every module of this folder.

import { app } from "../../scripts/app.js";
import { readReport, watch } from "./watch.js";

app.registerExtension({ name: "LLM4GEN", setup: watch, refreshComboInNodes: readReport });

// A few lines of text at the foot of a node: a widget that is neither saved nor sent.

import { app } from "../../scripts/app.js";

const NAME = "llm4gen_note"; // no input of a node may have it
const MARGIN = 4; // around the text, in the graph's units
const STYLE = `
.llm4gen-note { box-sizing: border-box; overflow: visible; min-width: 0; }
.llm4gen-note > div { padding: 0 8px; font: 12px/16px var(--font-inter, Arial, sans-serif); overflow-wrap: anywhere; }
.llm4gen-note p { margin: 0; color: var(--descrip-text, #999); }
.llm4gen-note p.warning { color: color-mix(in srgb, var(--warning-background, #fd9903), var(--fg-color, #fff)); }
/* Nodes painted on the canvas are moved and zoomed by the canvas, so it must get the mouse. */
.dom-widget:has(> .llm4gen-note) { pointer-events: none !important; }
`;
const notes = new WeakMap();

/** Shows lines ({ text, tone }) under a node, or nothing for none. */
export function show(node, lines) {
  const key = JSON.stringify(lines);
  const note = notes.get(node);
  if (key === (note?.key ?? "[]")) return;
  if (!lines.length) remove(node, note);
  else fill(note ?? add(node), lines, key);
  node.graph?.setDirtyCanvas?.(true, true);
}

function fill(note, lines, key) {
  note.key = key;
  const paragraphs = lines.map(({ text, tone }) => {
    const paragraph = document.createElement("p");
    paragraph.textContent = text;
    paragraph.className = tone ?? "";
    return paragraph;
  });
  note.text.replaceChildren(...paragraphs);
}

/** Always behind the node's own widgets: values are saved by their place. */
function add(node) {
  addStyle();
  const before = node.size?.[1];
  const element = document.createElement("div");
  const text = document.createElement("div");
  element.className = "llm4gen-note";
  element.append(text);
  const widget = node.addDOMWidget(NAME, "llm4gen_note", element, { serialize: false, margin: MARGIN });
  widget.serialize = false; // this keeps it out of workflows, the option out of prompts
  const note = { widget, text, height: 16, before };
  widget.computeLayoutSize = undefined; // else it would take a share of the prompt's height
  widget.computeSize = (width) => [width ?? 0, note.height + 2 * MARGIN];
  note.observer = new ResizeObserver(() => {
    if (text.offsetHeight) note.height = text.offsetHeight; // 0 while the node is out of sight
    node.graph?.setDirtyCanvas?.(true, true);
  });
  note.observer.observe(text);
  notes.set(node, note);
  return note;
}

function remove(node, { widget, observer, before }) {
  const grown = node.size?.[1] <= node.computeSize?.()[1]; // by the note alone, and not by hand
  observer.disconnect();
  notes.delete(node);
  widget.onRemove?.();
  node.widgets.splice(node.widgets.indexOf(widget), 1);
  if (grown && before < node.size[1]) node.setSize?.([node.size[0], before]);
}

function addStyle() {
  if (document.getElementById(NAME)) return;
  const style = document.createElement("style");
  style.id = NAME;
  style.textContent = STYLE;
  document.head.append(style);
}

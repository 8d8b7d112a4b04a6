// Lines of text at the foot of a node: a widget that is neither saved in workflows nor sent in prompts.

import { app } from "../../scripts/app.js";

const NAME = "llm4gen_note"; // the name of the widget, and so of no input
const MARGIN = 4; // around the text, in the graph's units
const STYLE = `
.llm4gen-note { box-sizing: border-box; overflow: visible; min-width: 0; }
.llm4gen-note > div { padding: 0 8px; font: 12px/16px var(--font-inter, Arial, sans-serif); overflow-wrap: anywhere; }
.llm4gen-note p { margin: 0; color: var(--descrip-text, #999); }
.llm4gen-note p.warning { color: color-mix(in srgb, var(--warning-background, #fd9903), var(--fg-color, #fff)); }
/* The canvas moves and zooms the nodes that it paints, so the mouse must reach it through the text. */
.dom-widget:has(> .llm4gen-note) { pointer-events: none !important; }
`;
const notes = new WeakMap();

/** Shows lines ({ text, tone }) under a node, or removes what is there if there are none. */
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

/** Adds the widget after the node's own ones, because workflows save values by their position. */
function add(node) {
  addStyle();
  const before = node.size?.[1];
  const element = document.createElement("div");
  const text = document.createElement("div");
  element.className = "llm4gen-note";
  element.append(text);
  const options = { serialize: false, margin: MARGIN, hideInPanel: true }; // no row in the panel of properties
  const widget = node.addDOMWidget(NAME, NAME, element, options);
  widget.serialize = false; // keeps it out of workflows; the option of that name keeps it out of prompts
  const note = { widget, text, height: 16, before };
  widget.computeLayoutSize = undefined; // otherwise it would take a share of the prompt's height
  widget.computeSize = (width) => [width ?? 0, note.height + 2 * MARGIN];
  note.observer = new ResizeObserver(() => {
    if (text.offsetHeight) note.height = text.offsetHeight; // it is 0 while the node is out of sight
    node.graph?.setDirtyCanvas?.(true, true);
  });
  note.observer.observe(text);
  notes.set(node, note);
  return note;
}

function remove(node, { widget, observer, before }) {
  const grewByNote = node.size?.[1] <= node.computeSize?.()[1]; // the user has not made the node larger
  observer.disconnect();
  notes.delete(node);
  widget.onRemove?.();
  node.widgets.splice(node.widgets.indexOf(widget), 1);
  if (grewByNote && before < node.size[1]) node.setSize?.([node.size[0], before]);
}

function addStyle() {
  if (document.getElementById(NAME)) return;
  const style = document.createElement("style");
  style.id = NAME;
  style.textContent = STYLE;
  document.head.append(style);
}

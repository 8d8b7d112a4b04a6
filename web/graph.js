// Walks the graph against the current: from a node's input to the node, or the value, that feeds it.

export const CONDITIONING = "LLM4GEN_Conditioning";
export const FUSED_CLIP = "LLM4GEN_ApplyToCLIP";
export const ENCODER_LOADER = "LLM4GEN_LoadLLMEncoder";
export const ADAPTER_LOADER = "LLM4GEN_LoadCrossAdapter";
export const TEXT_ENCODE = "CLIPTextEncode";

const MUTED = 2; // LiteGraph's modes
const BYPASSED = 4;
const BORDER = -10; // the node id of a subgraph's inputs, inside it
const LONGEST = 100; // links in a row: a damaged graph may run in a circle

/** Whether a node takes part in a run. */
export const runs = (node) => ![MUTED, BYPASSED].includes(node.mode);

export const widget = (node, name) => node.widgets?.find((widget) => widget.name === name);

export const isLinked = (node, name) => slot(node, name)?.link != null;

/** The node that feeds an input, through reroutes, bypassed nodes and the borders of subgraphs; null if none does. */
export function source(node, name) {
  return isLinked(node, name) ? (origin(node.graph, slot(node, name).link, 0).node ?? null) : null;
}

/** What a widget will be worth in a run; undefined where only the run itself can tell. */
export function value(node, name) {
  if (!isLinked(node, name)) return widget(node, name)?.value;
  const from = origin(node.graph, slot(node, name).link, 0);
  return from.node ? plainValue(from.node) : from.value;
}

/** The file that a loader upstream of an input will load; null if that cannot be told. */
export function loaded(node, input, loader, name) {
  const from = node && source(node, input);
  return from?.comfyClass === loader ? (value(from, name) ?? null) : null;
}

/** The LLM4GEN CLIP that a node's `clip` has passed through, LoRA loaders and the like between; null if none. */
export function fusedClip(node) {
  for (let steps = 0; node && steps < LONGEST; steps++) {
    const inputs = (node.inputs ?? []).filter((input) => input.type === "CLIP");
    node = inputs.length === 1 ? source(node, inputs[0].name) : null;
    if (node?.comfyClass === FUSED_CLIP) return node;
  }
  return null;
}

const slot = (node, name) => node.inputs?.find((input) => input.name === name);

/** Where a link begins: { node } or, at a subgraph's own widget, { value }; {} if nowhere. */
function origin(graph, id, steps) {
  const link = graph?.getLink?.(id) ?? graph?.links?.[id];
  if (!link || steps > LONGEST) return {};
  if (Number(link.origin_id) === BORDER) return outside(graph, link.origin_slot, steps);
  const node = graph.getNodeById(link.origin_id);
  if (!node || node.mode === MUTED) return {};
  if (node.mode !== BYPASSED && node.subgraph) {
    const inner = node.subgraph.outputNode?.slots?.[link.origin_slot]?.linkIds?.[0];
    return inner == null ? {} : origin(node.subgraph, inner, steps + 1);
  }
  if (node.mode !== BYPASSED && node.type !== "Reroute") return { node };
  const through = passage(node, link.origin_slot);
  return through?.link == null ? {} : origin(graph, through.link, steps + 1);
}

/** The input that a reroute or a bypassed node hands on: of the output's type, the one in the same place first. */
function passage(node, output) {
  const inputs = node.inputs ?? [];
  if (node.type === "Reroute") return inputs[0];
  const type = node.outputs?.[output]?.type;
  return [inputs[output], ...inputs].find((input) => input?.type === type && input.link != null);
}

/** What feeds a subgraph's input from outside. A subgraph that stands in several places may have several answers. */
function outside(graph, index, steps) {
  const hosts = nodesOf(graph.rootGraph).filter((node) => node.subgraph === graph);
  const input = hosts.length === 1 ? hosts[0].inputs?.[index] : undefined;
  if (!input) return {};
  if (input.link != null) return origin(hosts[0].graph, input.link, steps + 1);
  return { value: widget(hosts[0], input.widget?.name ?? input.name)?.value };
}

const nodesOf = (graph) =>
  (graph?.nodes ?? []).flatMap((node) => [node, ...(node.subgraph ? nodesOf(node.subgraph) : [])]);

/** The value of a node that has one widget and nothing else to make its output from, such as a primitive. */
function plainValue(node) {
  const widgets = node.widgets ?? [];
  const alone = widgets.length === 1 && (node.inputs ?? []).every((input) => input.link == null);
  return alone || node.type === "PrimitiveNode" ? widgets[0]?.value : undefined;
}

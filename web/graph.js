// Follows the graph upstream: from a node's input to the node, or the value, that feeds it.

export const CONDITIONING = "LLM4GEN_Conditioning";
export const FUSED_CLIP = "LLM4GEN_ApplyToCLIP";
export const ENCODER_LOADER = "LLM4GEN_LoadLLMEncoder";
export const ADAPTER_LOADER = "LLM4GEN_LoadCrossAdapter";
export const FUSE = "LLM4GEN_FuseConditioning";
export const NEW_ADAPTER = "LLM4GEN_NewCrossAdapter";
export const TRAINING_SET = "LLM4GEN_TrainingSet";
export const TEXT_ENCODE = "CLIPTextEncode";
export const SDXL_TEXT_ENCODE = "CLIPTextEncodeSDXL";
export const REFINER_TEXT_ENCODE = "CLIPTextEncodeSDXLRefiner";

const CHECKPOINT = "ckpt_name"; // the widget of ComfyUI's loaders of checkpoints, and of those of most packs
const OTHER_FILES = /ckpt|checkpoint|clip_?name|text_?encoder/i; // of widgets whose file a loader may take CLIP from
const MUTED = 2; // LiteGraph's node modes
const BYPASSED = 4;
const SUBGRAPH_INPUTS = -10; // the node id that stands for a subgraph's inputs, inside it
const LONGEST = 100; // links followed in a row, because a damaged graph may contain a circle

/** Whether a node takes part in a run. */
export const runs = (node) => ![MUTED, BYPASSED].includes(node.mode);

export const widget = (node, name) => node.widgets?.find((widget) => widget.name === name);

export const isLinked = (node, name) => linkOf(node, slotOf(node, name)) !== null;

/** The node that feeds an input, through reroutes, bypassed nodes and the borders of subgraphs; null if none does. */
export function source(node, name) {
  const link = linkOf(node, slotOf(node, name));
  return link ? (origin(node.graph, link, 0).node ?? null) : null;
}

/** The value that a widget will have in a run; undefined where only the run itself can tell. */
export function value(node, name) {
  const link = linkOf(node, slotOf(node, name));
  if (!link) return widget(node, name)?.value;
  const from = origin(node.graph, link, 0);
  return from.node ? plainValue(from.node) : from.value;
}

/** The file that a loader upstream of an input will load; null if that cannot be told. */
export function loaded(node, input, loader, name) {
  const from = node && source(node, input);
  return from?.comfyClass === loader ? (value(from, name) ?? null) : null;
}

/** The LLM4GEN CLIP upstream of a node's `clip`, with LoRA loaders and the like between; null if there is none. */
export const fusedClip = (node) => upstreamOfClip(node, (from) => from.comfyClass === FUSED_CLIP);

/** The checkpoint whose CLIP a node gets, with LoRA loaders and the like between; null if that cannot be told. */
export function checkpointOf(node) {
  const loader = upstreamOfClip(node, (from) => widget(from, CHECKPOINT));
  const name = loader && hasNoOtherClip(loader) ? value(loader, CHECKPOINT) : null;
  return typeof name === "string" ? name : null; // some packs keep more than a name in this widget
}

/** Whether a loader of a checkpoint can only give that checkpoint's CLIP, and not one from another file or a link. */
function hasNoOtherClip(loader) {
  const names = (loader.widgets ?? []).map(({ name }) => name);
  const isLinkedToClip = (loader.inputs ?? []).some((input, slot) => mayBeClip(input) && linkOf(loader, slot));
  return !isLinkedToClip && !names.some((name) => name !== CHECKPOINT && OTHER_FILES.test(name));
}

/** The first node upstream of a node's `clip` that is looked for; null if there is none. */
function upstreamOfClip(node, isFound) {
  for (let steps = 0; node && steps < LONGEST; steps++) {
    const inputs = (node.inputs ?? []).filter(mayBeClip);
    node = inputs.length === 1 ? source(node, inputs[0].name) : null;
    if (node && isFound(node)) return node;
  }
  return null;
}

/** Whether a CLIP can come into an input. One for any type counts only while it has a link. */
const mayBeClip = (input) => input.type === "CLIP" || (input.type === "*" && input.link != null);

const slotOf = (node, name) => (node.inputs ?? []).findIndex((input) => input.name === name);

/** The link into an input, by its slot; null if there is none. */
function linkOf(node, slot) {
  if (slot < 0 || slot >= (node.inputs?.length ?? 0) || !node.graph) return null;
  // The base class's method: a subgraph's node overrides it with one that returns a link inside the subgraph.
  return LiteGraph.LGraphNode.prototype.getInputLink.call(node, slot) ?? null;
}

/** Where a link begins: { node } or, at a subgraph's own widget, { value }; {} if nowhere. */
function origin(graph, link, steps) {
  if (!link || steps > LONGEST) return {};
  if (Number(link.origin_id) === SUBGRAPH_INPUTS) return outside(graph, link.origin_slot, steps);
  const node = graph.getNodeById(link.origin_id);
  if (!node || node.mode === MUTED) return {};
  if (node.mode !== BYPASSED && node.subgraph) {
    const inner = node.subgraph.outputNode?.slots?.[link.origin_slot]?.linkIds?.[0];
    return inner == null ? {} : origin(node.subgraph, node.subgraph.getLink(inner), steps + 1);
  }
  if (node.mode !== BYPASSED && node.type !== "Reroute") return { node };
  return origin(graph, passage(node, link.origin_slot), steps + 1);
}

/** The link that a reroute or a bypassed node passes on: into an input of the output's type, the same slot first. */
function passage(node, output) {
  if (node.type === "Reroute") return linkOf(node, 0);
  const inputs = node.inputs ?? [];
  const type = node.outputs?.[output]?.type;
  const slots = [output, ...inputs.keys()].filter((slot) => inputs[slot]?.type === type);
  return slots.map((slot) => linkOf(node, slot)).find((link) => link) ?? null;
}

/** What feeds a subgraph's input from outside. With a subgraph in several places there would be several answers. */
function outside(graph, slot, steps) {
  const hosts = nodesOf(graph.rootGraph).filter((node) => node.subgraph === graph);
  const input = hosts.length === 1 ? hosts[0].inputs?.[slot] : undefined;
  if (!input) return {};
  const link = linkOf(hosts[0], slot);
  if (link) return origin(hosts[0].graph, link, steps + 1);
  return { value: widget(hosts[0], input.widget?.name ?? input.name)?.value };
}

/** All nodes of a graph, with those inside its subgraphs. */
export const nodesOf = (graph) =>
  (graph?.nodes ?? []).flatMap((node) => [node, ...(node.subgraph ? nodesOf(node.subgraph) : [])]);

/** The value of a node whose output is its only widget, such as a primitive. */
function plainValue(node) {
  const widgets = node.widgets ?? [];
  const hasNoLinks = (node.inputs ?? []).every((_, slot) => linkOf(node, slot) === null);
  const isPlain = widgets.length === 1 && hasNoLinks;
  return isPlain || node.type === "PrimitiveNode" ? widgets[0]?.value : undefined;
}

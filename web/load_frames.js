/** Load Frame Sequence: files dropped on it or chosen are uploaded, and a strip shows which frames it picks. */

import { addElementWidget, after, makeRoom, tag } from "./elements.js";
import { FrameStrip } from "./frame_strip.js";
import { nodeAtPath } from "./running_node.js";
import { CLIP, readChoice, readDrop, upload } from "./upload.js";
import { say } from "./words.js";

export const LOAD_FRAMES = "SDVideoLoadFrameSequence";

const PICK = ["offset", "stride", "num_frames"];
const HEIGHT = 142; // pixels, of elements.css's parts together
const CLIPS_FOLDER = "sdvideo"; // in the input folder
const CLIP_OR_PICTURE = /\.webp$/i;

const strips = new WeakMap(); // node -> what reads its source again
let uploads = Promise.resolve(); // one after the other, as two at once would take the same folder

export function addStrip(node, app) {
  const strip = new FrameStrip();
  const progress = tag("progress", { hidden: true, ariaLabel: say("upload") });
  const bring = (chosen) => (uploads = uploads.then(() => bringIn(node, chosen, strip, progress, app)));
  const element = tag("div", { className: "sdvideo-frames", role: "group", ariaLabel: say("framesToLoad") });
  const buttons = tag("div", { className: "sdvideo-controls" });
  buttons.append(chooser(say("chooseFiles"), { multiple: true, accept: "image/*,video/*" }, bring));
  buttons.append(chooser(say("chooseFolder"), { webkitdirectory: true }, bring), progress);
  element.append(buttons, strip.element);
  addElementWidget(node, "frames", element, () => HEIGHT, app);
  followWidgets(node, strip, app);
  takeDrops(node, element, bring, app);
  makeRoom(node);
}

/** After ComfyUI has looked for new files. */
export function readStripsAgain(app) {
  for (const graph of [app.rootGraph, ...app.rootGraph.subgraphs.values()])
    for (const node of graph.nodes) strips.get(node)?.();
}

/** A node runs, maybe as its files have changed. */
export function followFiles(app) {
  app.api.addEventListener("executing", ({ detail }) => strips.get(detail && nodeAtPath(detail, app))?.());
}

function takeDrops(node, element, bring, app) {
  // Above an element the canvas does not see what is dragged.
  element.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    app.dragOverNode = node;
  });
  element.addEventListener("dragleave", () => {
    if (app.dragOverNode === node) app.dragOverNode = null;
  });
  node.onDragOver = hasFiles;
  // Vue nodes hand on all that is dropped.
  node.onDragDrop = async (event) => hasFiles(event) && readDrop(event.dataTransfer).then(bring).then(() => true);
}

/** Of a text, the canvas and the page may make what they want. */
function hasFiles({ dataTransfer }) {
  return dataTransfer.types.includes("Files");
}

/** A button that opens a file dialog. */
function chooser(text, properties, onChosen) {
  const input = tag("input", { type: "file", ...properties });
  input.onchange = () => onChosen(readChoice(input)).then(() => (input.value = ""));
  return tag("button", { type: "button", textContent: text, onclick: () => input.click() });
}

async function bringIn(node, chosen, strip, progress, app) {
  progress.hidden = false;
  try {
    await uploadSource(node, chosen, app, (fraction) => (progress.value = fraction));
  } catch (error) {
    strip.warn(say("cannotUpload", { error: error.message }));
  }
  progress.hidden = true;
}

/** Upload files and make them the node's source. */
async function uploadSource(node, { files, folder }, app, onProgress) {
  if (!files.length) throw new Error(say("noMedia"));
  const { clip, pictures } = oneSource(files, app);
  const subfolder = clip ? CLIPS_FOLDER : freeName(folder || stem(pictures[0].name), await listSources(app));
  const [name] = await upload(clip ? [clip] : pictures, subfolder, app.api, onProgress);
  const source = clip ? `${subfolder}/${name}` : subfolder;
  const widget = widgetOf(node, "source");
  if (!widget.options.values.includes(source)) widget.options.values.push(source);
  widget.value = source;
  widget.callback?.(source);
}

/** What of the files a node can load: {clip} or {pictures}. The user is told what is left out. */
function oneSource(files, app) {
  const isClip = ({ name }) => CLIP.test(name) || (files.length === 1 && CLIP_OR_PICTURE.test(name));
  const pictures = files.filter((file) => !isClip(file));
  const [clip, ...others] = files.filter(isClip);
  if (clip && pictures.length) tell(say("onlyPictures"), app);
  else if (others.length) tell(say("onlyOneClip", { file: clip.name }), app);
  return pictures.length ? { pictures } : { clip };
}

function tell(detail, app) {
  app.extensionManager.toast.add({ severity: "warn", summary: say("loadFrames"), detail, life: 8000 });
}

async function listSources(app) {
  const nodes = await (await app.api.fetchApi(`/object_info/${LOAD_FRAMES}`)).json();
  const [type, { options }] = nodes[LOAD_FRAMES].input.required.source;
  return options ?? type;
}

/** frame_0001.png -> frame */
function stem(filename) {
  return filename.replace(/\.\w+$/, "").replace(/[\s._-]*\d*$/, "") || "frames";
}

/** Most disks take WALK and walk for the same. */
function freeName(name, sources) {
  const taken = new Set([CLIPS_FOLDER, ...sources].map((source) => source.toLowerCase()));
  let free = name;
  for (let count = 2; taken.has(free.toLowerCase()); count++) free = `${name} (${count})`;
  return free;
}

function widgetOf(node, name) {
  return node.widgets.find((widget) => widget.name === name);
}

function followWidgets(node, strip, app) {
  const isLinked = ({ widget, link }) => link != null && [...PICK, "source"].includes(widget?.name);
  const values = () => Object.fromEntries(PICK.map((name) => [name, widgetOf(node, name).value]));
  let shown = null;
  let reading = 0;
  const read = async () => {
    const request = ++reading;
    const source = widgetOf(node, "source").value;
    if (!source) return;
    if (source !== shown) strip.wait(say("reading", { source }));
    shown = source;
    const clip = await describe(source, app);
    if (request !== reading) return;
    if (clip.error) shown = null;
    if (clip.error) strip.clear(clip.error);
    else strip.show(clip);
    makeRoom(node);
  };
  // A workflow's values come after the node is made, one by one.
  const follow = onceAtATime(() => {
    strip.pick(node.inputs.some(isLinked) ? null : values());
    if (widgetOf(node, "source").value !== shown) read();
  });
  strips.set(node, read);
  for (const name of [...PICK, "source"]) after(widgetOf(node, name), "callback", follow);
  for (const event of ["onConfigure", "onAdded", "onConnectionsChange"]) after(node, event, follow);
}

/** What can be called often, and does something once when all that goes on now is over. */
function onceAtATime(action) {
  let isDue = false;
  const act = () => {
    isDue = false;
    action();
  };
  return () => {
    if (!isDue) queueMicrotask(act);
    isDue = true;
  };
}

async function describe(source, app) {
  try {
    const response = await app.api.fetchApi(`/sdvideo/strip?${new URLSearchParams({ source })}`);
    return response.ok ? await response.json() : { error: await response.text() };
  } catch (error) {
    return { error: say("cannotRead", { source, error: error.message }) };
  }
}

/** Load Frame Sequence: files dropped on it or chosen are uploaded, and a strip shows which frames it picks. */

import { addElementWidget, makeRoom, tag } from "./elements.js";
import { FrameStrip } from "./frame_strip.js";
import { readChoice, readDrop, upload } from "./upload.js";

export const LOAD_FRAMES = "SDVideoLoadFrameSequence";

const PICK = ["offset", "stride", "num_frames"];
const HEIGHT = 142; // pixels, of elements.css's parts together
// One file of these is a clip by itself; other pictures are frames of one, in a folder.
const CLIP = /\.(gif|webp|apng|mp4|webm|mov|mkv|avi|m4v)$/i;

export function addStrip(node, app) {
  const strip = new FrameStrip();
  const progress = tag("progress", { hidden: true, ariaLabel: "Upload" });
  const bring = (chosen) => bringIn(node, chosen, strip, progress, app);
  const element = tag("div", { className: "sdvideo-frames", role: "group", ariaLabel: "Frames to load" });
  const buttons = tag("div", { className: "sdvideo-controls" });
  buttons.append(chooser("Choose Files", { multiple: true, accept: "image/*,video/*" }, bring));
  buttons.append(chooser("Choose Folder", { webkitdirectory: true }, bring), progress);
  element.append(buttons, strip.element);
  addElementWidget(node, "frames", element, () => HEIGHT, app);
  followWidgets(node, strip, app);
  takeDrops(node, element, bring, app);
  makeRoom(node);
}

function takeDrops(node, element, bring, app) {
  // Above an element the canvas does not see what is dragged.
  element.addEventListener("dragover", (event) => {
    event.preventDefault();
    app.dragOverNode = node;
  });
  node.onDragOver = ({ dataTransfer }) => dataTransfer.types.includes("Files");
  node.onDragDrop = async ({ dataTransfer }) => {
    await bring(await readDrop(dataTransfer));
    return true;
  };
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
    strip.clear(`Cannot upload ${error.message}`);
  }
  progress.hidden = true;
}

/** Upload files and make them the node's source. */
async function uploadSource(node, { files, folder }, app, onProgress) {
  if (!files.length) throw new Error("nothing: these are no pictures or videos");
  const single = files.length === 1 && CLIP.test(files[0].name);
  const subfolder = single ? "" : freeName(folder || stem(files[0].name), await listSources(app));
  const [name] = await upload(files, subfolder, app.api, onProgress);
  const source = single ? name : subfolder;
  const widget = widgetOf(node, "source");
  if (!widget.options.values.includes(source)) widget.options.values.push(source);
  widget.value = source;
  widget.callback?.(source);
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

function freeName(name, taken) {
  let free = name;
  for (let count = 2; taken.includes(free); count++) free = `${name} (${count})`;
  return free;
}

function widgetOf(node, name) {
  return node.widgets.find((widget) => widget.name === name);
}

function followWidgets(node, strip, app) {
  const pick = () => strip.pick(Object.fromEntries(PICK.map((name) => [name, widgetOf(node, name).value])));
  let shown = null;
  const load = async () => {
    const source = widgetOf(node, "source").value;
    if (!source || source === shown) return;
    shown = source;
    const clip = await describe(source, app);
    if (shown !== source) return;
    if (clip.error) strip.clear(clip.error);
    else strip.show(clip);
    makeRoom(node);
  };
  const follow = () => {
    pick();
    load();
  };
  for (const name of [...PICK, "source"]) after(widgetOf(node, name), "callback", follow);
  // A workflow's values come after the node is made, without callbacks.
  after(node, "onConfigure", follow);
  after(node, "onAdded", follow);
}

async function describe(source, app) {
  const response = await app.api.fetchApi(`/sdvideo/strip?${new URLSearchParams({ source })}`);
  return response.ok ? response.json() : { error: await response.text() };
}

function after(object, name, action) {
  const before = object[name];
  object[name] = function () {
    const result = before?.apply(this, arguments);
    action();
    return result;
  };
}

/** Save GIF's player: what the node saved plays inside it, and its menu opens, saves and names the file. */

import { fileUrl } from "./clip.js";
import { addElementWidget, after, makeRoom, tag } from "./elements.js";
import { Player } from "./player.js";
import { say } from "./words.js";

export const SAVE_GIF = "SDVideoSaveGIF";

const FPS = 8; // of what does not say it, as these models are made for

const shown = new WeakMap(); // node -> {player, urls} of what it plays

export function addPlayer(node, app) {
  const player = new Player();
  shown.set(node, { player, urls: "" });
  removeStockPreview(node);
  addElementWidget(node, "player", player.element, (width) => player.heightAt(width), app);
  after(node, "onExecuted", (output) => show(node, output, app));
  after(node, "onRemoved", () => player.close());
}

/** It would show the same file a second time, of a GIF on the classic canvas the first frame only. */
function removeStockPreview(node) {
  node.hideOutputImages = true; // Vue nodes
  node.onDrawBackground = undefined; // classic canvas
}

/** Show what a node's output names, unless the player has it already. */
export function restore(node, output, app) {
  if (filesOf(output, app).map((file) => file.url).join() !== shown.get(node)?.urls) show(node, output, app);
}

function show(node, output, app) {
  const files = filesOf(output, app);
  if (!files.length || !shown.has(node)) return;
  const { player } = shown.get(node);
  shown.set(node, { player, urls: files.map((file) => file.url).join() });
  player.load(clipsOf(files, output.sdvideo ?? [])).then(() => makeRoom(node));
}

function filesOf(output, app) {
  return (output?.images ?? []).map((file) => ({ ...file, url: fileUrl(file, app) }));
}

/**
 * ComfyUI joins what a node puts out when it runs several times, for a list; runs: [fps, num_frames, format, path] of
 * each. Only a sequence of pictures is several files.
 */
function clipsOf(files, runs) {
  const rest = [...files];
  const count = ([, numFrames, format]) => (format === "png sequence" ? numFrames : 1);
  const clips = runs.map((run) => ({ fps: run[0], files: withPath(rest.splice(0, count(run)), run[3]) }));
  return [...clips.filter((clip) => clip.files.length), ...rest.map((file) => ({ fps: FPS, files: [file] }))];
}

function withPath(files, path) {
  return files.map((file) => ({ ...file, path }));
}

/**
 * Entries for the node's context menu, about the clip that is shown. Of a sequence of pictures, the file is the first,
 * the path their folder's.
 */
export function menuItems(node, app) {
  const { files } = shown.get(node).player;
  if (!files.length) return [];
  const place = [files[0].type, files[0].subfolder, files.length === 1 && files[0].filename].filter(Boolean).join("/");
  const path = files[0].path ?? place; // an output of older versions
  return [
    null,
    { content: say("openInNewTab"), callback: () => window.open(files[0].url, "_blank", "noopener") },
    { content: say("saveFile"), callback: () => download(files[0]) },
    { content: say("copyPath"), callback: () => copy(path, app) },
  ];
}

function download({ url, filename }) {
  tag("a", { href: url, download: filename }).click();
}

async function copy(text, app) {
  try {
    // Browsers offer it to pages from this machine or https only, and not to all of these.
    await navigator.clipboard.writeText(text);
  } catch {
    copyBySelection(text);
  }
  app.extensionManager.toast.add({ severity: "success", summary: say("copied"), detail: text, life: 3000 });
}

function copyBySelection(text) {
  const area = tag("textarea", { value: text });
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

/** Save GIF's player: what the node saved plays inside it, and its menu opens, saves and names the file. */

import { addElementWidget, makeRoom, tag } from "./elements.js";
import { Player } from "./player.js";

export const SAVE_GIF = "SDVideoSaveGIF";

const shown = new WeakMap(); // node -> {player, files: [{filename, subfolder, type, url}]}

export function addPlayer(node, app) {
  const player = new Player();
  shown.set(node, { player, files: [] });
  removeStockPreview(node);
  addElementWidget(node, "player", player.element, (width) => player.heightAt(width), app);
  const { onExecuted, onRemoved } = node;
  node.onExecuted = function (output) {
    onExecuted?.apply(this, arguments);
    show(this, output, app);
  };
  node.onRemoved = function () {
    onRemoved?.apply(this, arguments);
    player.close();
  };
}

/** It would show the same file a second time, of a GIF on the classic canvas the first frame only. */
function removeStockPreview(node) {
  node.hideOutputImages = true; // Vue nodes
  node.onDrawBackground = undefined; // classic canvas
}

/** Show what a node's output names, unless the player has it already. */
export function restore(node, output, app) {
  const names = (output?.images ?? []).map((file) => file.filename).join();
  if (names !== shown.get(node)?.files.map((file) => file.filename).join()) show(node, output, app);
}

function show(node, output, app) {
  const files = (output?.images ?? []).map((file) => ({ ...file, url: fileUrl(file, app) }));
  if (!files.length || !shown.has(node)) return;
  const { player } = shown.get(node);
  shown.set(node, { player, files });
  const [[fps]] = output.sdvideo ?? [[node.widgets.find((widget) => widget.name === "fps")?.value]];
  player.load(files, fps || 8).then(() => makeRoom(node));
}

function fileUrl({ filename, subfolder, type }, app) {
  return app.api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
}

/** Entries for the node's context menu. Of a sequence of pictures, the file is the first, the path their folder's. */
export function menuItems(node, app) {
  const { files } = shown.get(node);
  if (!files.length) return [];
  const path = [files[0].type, files[0].subfolder, files.length === 1 && files[0].filename].filter(Boolean).join("/");
  return [
    null,
    { content: "Open in New Tab", callback: () => window.open(files[0].url, "_blank", "noopener") },
    { content: "Save File", callback: () => download(files[0]) },
    { content: "Copy Path", callback: () => copy(path, app) },
  ];
}

function download({ url, filename }) {
  tag("a", { href: url, download: filename }).click();
}

async function copy(text, app) {
  // Browsers offer the clipboard to pages from this machine or https only.
  if (navigator.clipboard) await navigator.clipboard.writeText(text);
  else copyBySelection(text);
  app.extensionManager?.toast?.add({ severity: "success", summary: "Copied", detail: text, life: 3000 });
}

function copyBySelection(text) {
  const area = tag("textarea", { value: text });
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

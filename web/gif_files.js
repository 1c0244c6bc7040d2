/** GIF files as workflows: dropped on the canvas or opened from the menu, they bring their graph back. */

import { readGifGraphs } from "./gif_comment.js";

/** Make ComfyUI's way to open a file read the graph in a GIF; all other files go the way they went before. */
export function openGraphsInGifs(app) {
  const openFile = app.handleFile;
  app.handleFile = async function (file, source, options, ...rest) {
    const graphs = await readGraphs(file);
    if (!graphs) return openFile.call(this, file, source, options, ...rest);
    const name = file.name.replace(/\.gif$/i, "");
    const deferWarnings = options?.deferWarnings;
    if (!graphs.workflow) return app.loadApiJson(graphs.prompt, name, { deferWarnings });
    return app.loadGraphData(graphs.workflow, true, true, name, { openSource: source, deferWarnings });
  };
  offerGifsInTheFileDialog();
}

async function readGraphs(file) {
  if (file.type !== "image/gif" && !/\.gif$/i.test(file.name)) return null;
  return readGifGraphs(new Uint8Array(await file.arrayBuffer()));
}

function offerGifsInTheFileDialog() {
  const input = document.getElementById("comfy-file-input");
  if (input?.accept) input.accept += ",.gif,image/gif";
}

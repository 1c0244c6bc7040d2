/** GIF files as workflows: dropped on the canvas or opened from the menu, they bring their graph back. */

import { readGifGraphs } from "./gif_comment.js";

/** Make ComfyUI's way to open a file read the graph in a GIF; all other files go the way they went before. */
export function openGraphsInGifs(app) {
  const openFile = app.handleFile;
  app.handleFile = async function (file, source, options, ...rest) {
    const { workflow, prompt } = (await readGraphs(file)) ?? {};
    const name = file.name.replace(/\.gif$/i, "");
    const deferWarnings = options?.deferWarnings;
    // Other programs use these names too, for texts and what not.
    if (Array.isArray(workflow?.nodes))
      return app.loadGraphData(workflow, true, true, name, { openSource: source, deferWarnings });
    if (app.isApiJson(prompt)) return app.loadApiJson(prompt, name, { deferWarnings });
    return openFile.call(this, file, source, options, ...rest);
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

/** SDVideo in the browser: clips play inside their nodes, frames are chosen by eye, and GIFs bring back their graph. */

import { app } from "../../scripts/app.js";
import { openGraphsInGifs } from "./gif_files.js";
import { LOAD_FRAMES, addStrip, followFiles, readStripsAgain } from "./load_frames.js";
import { showSampling } from "./sampling.js";
import { SAVE_GIF, addPlayer, menuItems, restore } from "./save_gif.js";
import { showTraining } from "./training.js";

app.registerExtension({
  name: "SDVideo",

  setup() {
    const href = new URL("elements.css", import.meta.url).href;
    document.head.append(Object.assign(document.createElement("link"), { rel: "stylesheet", href }));
    openGraphsInGifs(app);
    showSampling(app);
    showTraining(app);
    followFiles(app);
  },

  refreshComboInNodes() {
    readStripsAgain(app);
  },

  nodeCreated(node) {
    if (node.comfyClass === SAVE_GIF) addPlayer(node, app);
    if (node.comfyClass === LOAD_FRAMES) addStrip(node, app);
  },

  onNodeOutputsUpdated(outputs) {
    for (const [locator, output] of Object.entries(outputs)) {
      const node = nodeAt(locator);
      if (node?.comfyClass === SAVE_GIF) restore(node, output, app);
    }
  },

  getNodeMenuItems(node) {
    return node.comfyClass === SAVE_GIF ? menuItems(node, app) : [];
  },
});

/** The node of a locator: its id, after that of its subgraph and a colon where it is in one. */
function nodeAt(locator) {
  const [id, subgraph] = locator.split(":").reverse();
  const graph = subgraph ? app.rootGraph.subgraphs.get(subgraph) : app.rootGraph;
  return graph?.getNodeById(id);
}

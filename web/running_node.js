/** The running node: which of the nodes that the user sees a report of the server is about. */

/**
 * report: {node, type, workflow}: the node's id, after those of the subgraphs that it is in and colons; what kind of
 * node it is and of which workflow, where the server knows. Of a node in a subgraph that is not open, it is the
 * outermost one on the way there that is in the open graph. Null when another workflow is open, or the node is gone.
 */
export function runningNode({ node: path, type, workflow }, app) {
  if (workflow && workflow !== app.rootGraph.id) return null;
  const nodes = nodesOnTheWay(app.rootGraph, String(path).split(":"));
  if (!nodes || (type && nodes.at(-1).type !== type)) return null;
  return nodes.find((node) => node.graph === app.canvas.graph) ?? nodes[0];
}

/** The node of such an id itself, in whichever graph it is; undefined when it is gone. */
export function nodeAtPath(path, app) {
  return nodesOnTheWay(app.rootGraph, String(path).split(":"))?.at(-1);
}

function nodesOnTheWay(root, ids) {
  const nodes = [];
  let graph = root;
  for (const id of ids) {
    const node = graph?.getNodeById(id);
    if (!node) return null;
    nodes.push(node);
    graph = node.subgraph;
  }
  return nodes;
}

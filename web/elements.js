/** Elements of a page, and how those inside a node share the mouse with the canvas. */

export const TEXT_HEIGHT = 20; // pixels of a line of text in a node, in elements.css

export function tag(name, properties) {
  return Object.assign(document.createElement(name), properties);
}

/**
 * On the classic canvas a DOM widget keeps the mouse to itself: no zoom, no panning, no menu of the node above it.
 * Hand those on; in Vue nodes they go their way by themselves.
 */
function letTheCanvasHandle(element, app) {
  const forward = (event) => {
    if (globalThis.LiteGraph.vueNodesMode || (event.type === "pointerdown" && event.button === 0)) return;
    event.preventDefault();
    event.stopPropagation();
    if (event.type !== "contextmenu") app.canvas.canvas.dispatchEvent(new event.constructor(event.type, event));
  };
  for (const type of ["pointerdown", "wheel", "contextmenu"]) element.addEventListener(type, forward);
}

const KEYS = [" ", "Enter", "Home", "End", "ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight", "Delete", "Backspace"];

/** What buttons, sliders and lists use must not also delete or move nodes. */
function keepKeys(element) {
  element.addEventListener("keydown", (event) => {
    if (KEYS.includes(event.key) && !event.ctrlKey && !event.metaKey) event.stopPropagation();
  });
}

/** Do something after each call of an object's method, with the same arguments. */
export function after(object, name, action) {
  const before = object[name];
  object[name] = function () {
    const result = before?.apply(this, arguments);
    action(...arguments);
    return result;
  };
}

/** Put an element below a node's other widgets; nothing of it is stored. Heights in pixels, 0 while it is hidden. */
export function addElementWidget(node, name, element, heightAt, app) {
  const margin = 10;
  const height = () => (element.hidden ? 0 : heightAt(node.size[0] - 2 * margin) + 2 * margin);
  const widget = node.addDOMWidget(name, `sdvideo_${name}`, element, {
    serialize: false,
    hideOnZoom: false,
    hideInPanel: true,
    margin,
    getMinHeight: height,
    getMaxHeight: () => (element.hidden ? 0 : undefined),
  });
  widget.serialize = false;
  letTheCanvasHandle(element, app);
  keepKeys(element);
  return widget;
}

/** Make a node tall enough for its widgets. */
export function makeRoom(node) {
  // Vue nodes grow by themselves.
  if (!globalThis.LiteGraph.vueNodesMode) node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])]);
  node.setDirtyCanvas(true, true);
}

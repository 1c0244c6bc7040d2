/** Training: while Train Video LoRA runs, its node shows the loss curve and the newest sample clip. */

import { fileUrl } from "./clip.js";
import { TEXT_HEIGHT, addElementWidget, after, makeRoom, tag } from "./elements.js";
import { Player } from "./player.js";
import { runningNode } from "./running_node.js";
import { describeSpeed } from "./sampling.js";
import { say } from "./words.js";

const CURVE = { width: 480, height: 160 }; // of a drawing that is as wide as the node
const MARGIN = { side: 12, text: 28 }; // the highest and the lowest loss stand above and below the curve

/** Follow what the server reports of training; a curve stays until its node, or the node it is shown on, is another. */
export function showTraining(app) {
  const monitors = new Map(); // where the training node is -> Monitor
  app.api.addEventListener("sdvideo.training", ({ detail }) => {
    const path = `${detail.workflow} ${detail.node}`;
    const node = runningNode(detail, app);
    if (monitors.get(path)?.node !== node) {
      monitors.get(path)?.close();
      monitors.delete(path);
    }
    if (!node) return;
    if (!monitors.has(path)) add(node, path);
    monitors.get(path).show(detail, app);
  });
  function add(node, path) {
    const monitor = new Monitor(node, app);
    monitors.set(path, monitor);
    after(node, "onRemoved", () => {
      monitor.player.close();
      if (monitors.get(path) === monitor) monitors.delete(path);
    });
  }
}

class Monitor {
  element = tag("div", { className: "sdvideo-live", role: "group", ariaLabel: say("training") });
  player = new Player();
  #curve = newCurve();
  #text = tag("output", { ariaLabel: say("progress"), ariaLive: "off" });
  #sample = "";

  constructor(node, app) {
    this.node = node;
    this.element.append(this.#curve, this.#text, this.player.element);
    this.widget = addElementWidget(node, "training", this.element, (width) => this.heightAt(width), app);
  }

  close() {
    this.player.close();
    if (this.node.widgets.includes(this.widget)) this.node.removeWidget(this.widget);
    this.node.setDirtyCanvas(true, true);
  }

  show(report, app) {
    const loss = report.losses.at(-1);
    this.#text.value = `${describeSpeed(report)} · ${say("loss", { loss: loss.toFixed(4) })}`;
    this.#curve.ariaLabel = say("lossCurve", { loss: loss.toFixed(4) });
    drawCurve(this.#curve, report.losses);
    const { sample } = report;
    if (sample && JSON.stringify(sample) !== this.#sample) this.#showSample(sample, app);
    makeRoom(this.node);
  }

  async #showSample(sample, app) {
    this.#sample = JSON.stringify(sample);
    await this.player.load([{ files: [{ ...sample, url: fileUrl(sample, app) }], fps: 8 }]);
    makeRoom(this.node);
  }

  heightAt(width) {
    return Math.round((width * CURVE.height) / CURVE.width) + TEXT_HEIGHT + this.player.heightAt(width);
  }
}

/** An SVG, as that follows the palette by itself. */
function newCurve() {
  const curve = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  curve.role = "img";
  curve.setAttribute("viewBox", `0 0 ${CURVE.width} ${CURVE.height}`);
  curve.innerHTML = `<polyline /><text x="${MARGIN.side}" y="20" /><text x="${MARGIN.side}" y="${CURVE.height - 6}" />`;
  return curve;
}

function drawCurve(curve, losses) {
  const [low, high] = [Math.min(...losses), Math.max(...losses)];
  const x = (index) => MARGIN.side + (index / Math.max(losses.length - 1, 1)) * (CURVE.width - 2 * MARGIN.side);
  const y = (loss) => MARGIN.text + ((high - loss) / (high - low || 1)) * (CURVE.height - 2 * MARGIN.text);
  const [line, top, bottom] = curve.children;
  line.setAttribute("points", losses.map((loss, index) => `${x(index)},${y(loss)}`).join(" "));
  top.textContent = high.toFixed(4);
  bottom.textContent = low.toFixed(4);
}

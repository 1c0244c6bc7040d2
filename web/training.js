/** Training: while Train Video LoRA runs, its node shows the loss curve and the newest sample clip. */

import { fileUrl } from "./clip.js";
import { TEXT_HEIGHT, addElementWidget, after, makeRoom, tag } from "./elements.js";
import { Player } from "./player.js";
import { runningNode } from "./running_node.js";
import { describeSpeed } from "./sampling.js";
import { say } from "./words.js";

const CURVE = { width: 480, height: 160 }; // pixels of the canvas, shown at the node's width

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
  #curve = tag("canvas", { ...CURVE, role: "img" });
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

function drawCurve(canvas, losses) {
  const context = canvas.getContext("2d");
  const style = getComputedStyle(canvas);
  const [low, high] = [Math.min(...losses), Math.max(...losses)];
  const margin = 12;
  const x = (index) => margin + (index / Math.max(losses.length - 1, 1)) * (canvas.width - 2 * margin);
  const y = (loss) => margin + ((high - loss) / (high - low || 1)) * (canvas.height - 2 * margin);
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = style.color;
  context.font = "12px system-ui, sans-serif";
  context.fillText(high.toFixed(4), margin, margin);
  context.fillText(low.toFixed(4), margin, canvas.height - 2);
  context.strokeStyle = style.getPropertyValue("--p-primary-color") || "#60a5fa";
  context.lineWidth = 2;
  context.beginPath();
  losses.forEach((loss, index) => context.lineTo(x(index), y(loss)));
  context.stroke();
}

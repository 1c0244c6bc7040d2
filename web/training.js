/** Training: while Train Video LoRA runs, its node shows the loss curve and the newest sample clip. */

import { addElementWidget, makeRoom, tag } from "./elements.js";
import { Player } from "./player.js";
import { describeSpeed } from "./sampling.js";

export const TRAIN_LORA = "SDVideoTrainLoRA";

const CURVE = { width: 480, height: 160 }; // pixels of the canvas, shown at the node's width
const TEXT_HEIGHT = 20; // pixels, in elements.css

export function showTraining(app) {
  app.api.addEventListener("sdvideo.training", ({ detail }) => {
    const node = app.graph?.getNodeById(detail.node);
    if (node) (monitors.get(node) ?? addMonitor(node, app)).show(detail, app);
  });
}

const monitors = new WeakMap(); // node -> Monitor

function addMonitor(node, app) {
  const monitor = new Monitor(node);
  monitors.set(node, monitor);
  addElementWidget(node, "training", monitor.element, (width) => monitor.heightAt(width), app);
  const { onRemoved } = node;
  node.onRemoved = function () {
    onRemoved?.apply(this, arguments);
    monitor.player.close();
  };
  return monitor;
}

class Monitor {
  element = tag("div", { className: "sdvideo-live", role: "group", ariaLabel: "Training" });
  player = new Player();
  #curve = tag("canvas", { ...CURVE, role: "img" });
  #text = tag("output", { ariaLabel: "Progress" });
  #sample = "";

  constructor(node) {
    this.node = node;
    this.element.append(this.#curve, this.#text, this.player.element);
  }

  show(report, app) {
    const loss = report.losses.at(-1);
    this.#text.value = `${describeSpeed(report)} · loss ${loss.toFixed(4)}`;
    this.#curve.ariaLabel = `Loss curve, ${loss.toFixed(4)} now`;
    drawCurve(this.#curve, report.losses);
    const { sample } = report;
    if (sample && sample.filename !== this.#sample) this.#showSample(sample, app);
    makeRoom(this.node);
  }

  async #showSample(sample, app) {
    this.#sample = sample.filename;
    const url = app.api.apiURL(`/view?${new URLSearchParams(sample)}`);
    await this.player.load([{ ...sample, url }], 8);
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

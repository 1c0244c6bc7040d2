/** Live preview: the clip being sampled plays on the node that samples it, with step, speed and time left. */

import { mayMove } from "./clock.js";
import { TEXT_HEIGHT, addElementWidget, makeRoom, tag } from "./elements.js";
import { runningNode } from "./running_node.js";
import { say } from "./words.js";

/** Follow what the server reports of sampling; a preview is gone when its node is done. */
export function showSampling(app) {
  let live = null;
  const end = () => {
    live?.close();
    live = null;
  };
  app.api.addEventListener("sdvideo.sampling", ({ detail }) => {
    const node = runningNode(detail, app);
    if (live?.node !== node) end();
    if (!node) return;
    live ??= new LivePreview(node, app);
    live.show(detail);
  });
  for (const kind of ["executing", "execution_success", "execution_error", "execution_interrupted", "reconnecting"])
    app.api.addEventListener(kind, end);
}

class LivePreview {
  element = tag("div", { className: "sdvideo-live", role: "group", ariaLabel: say("livePreview") });
  #canvas = tag("canvas", { hidden: true, role: "img", ariaLabel: say("clipSoFar") });
  #text = tag("output", { ariaLabel: say("progress"), ariaLive: "off" });
  #sheet = null; // {picture, frames, fps, columns, width, height}
  #numSheets = 0;
  #newest = 0; // number of the sheet that is shown
  #restoreStock;
  #height; // of the node without the preview, and with it
  #grown;
  #timer = 0;
  #frame = 0;

  constructor(node, app) {
    this.node = node;
    this.#height = node.size[1];
    this.element.append(this.#canvas, this.#text);
    this.#restoreStock = hideStockPreview(node);
    this.widget = addElementWidget(node, "live_preview", this.element, (width) => this.#heightAt(width), app);
    this.#makeRoom();
  }

  show(report) {
    this.#text.value = describeSpeed(report);
    if (report.sheet) this.#load(report.sheet);
  }

  close() {
    this.#newest = Infinity;
    clearInterval(this.#timer);
    this.#restoreStock();
    this.node.removeWidget(this.widget);
    // Unless the user has made it another.
    if (this.node.size[1] === this.#grown) this.node.setSize([this.node.size[0], this.#height]);
    this.node.setDirtyCanvas(true, true);
  }

  async #load(sheet) {
    const number = ++this.#numSheets;
    const picture = new Image();
    picture.src = sheet.image;
    await picture.decode();
    // By now it may be closed, or show a newer one.
    if (number < this.#newest) return;
    this.#newest = number;
    const isLike = ["frames", "fps", "width", "height"].every((name) => sheet[name] === this.#sheet?.[name]);
    this.#sheet = { ...sheet, picture };
    if (isLike) this.#draw();
    else this.#start();
  }

  #start() {
    clearInterval(this.#timer);
    this.#frame = 0;
    Object.assign(this.#canvas, { hidden: false, width: this.#sheet.width, height: this.#sheet.height });
    this.#draw();
    this.#makeRoom();
    if (!mayMove()) return;
    this.#timer = setInterval(() => {
      this.#frame = (this.#frame + 1) % this.#sheet.frames;
      this.#draw();
    }, 1000 / this.#sheet.fps);
  }

  #draw() {
    const { picture, columns, width, height } = this.#sheet;
    const [column, row] = [this.#frame % columns, Math.floor(this.#frame / columns)];
    const place = [column * width, row * height, width, height];
    this.#canvas.getContext("2d").drawImage(picture, ...place, 0, 0, width, height);
  }

  #makeRoom() {
    makeRoom(this.node);
    this.#grown = this.node.size[1];
  }

  #heightAt(width) {
    return TEXT_HEIGHT + (this.#sheet ? Math.round((width * this.#sheet.height) / this.#sheet.width) : 0);
  }
}

/** ComfyUI's own preview shows the first frame only; in Vue nodes elements.css hides it. Returns what brings it back. */
function hideStockPreview(node) {
  const { onDrawBackground } = node;
  node.onDrawBackground = undefined;
  return () => Object.assign(node, { onDrawBackground });
}

/** Step, speed and time left of a report, in words. */
export function describeSpeed({ step, steps, seconds_per_step: seconds, seconds_left: left }) {
  const time = say("timeLeft", { time: clock(left) });
  return `${step} / ${steps} · ${describeStep(seconds)} · ${time}`;
}

function describeStep(seconds) {
  if (seconds < 1) return say("stepsPerSecond", { speed: (1 / seconds).toFixed(1) });
  return say("secondsPerStep", { seconds: seconds.toFixed(1) });
}

function clock(seconds) {
  const whole = Math.ceil(seconds);
  const parts = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const [hours, ...rest] = parts.map((part) => String(part).padStart(2, "0"));
  return [...(parts[0] ? [hours] : []), ...rest].join(":");
}

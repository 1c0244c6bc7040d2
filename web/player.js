/** A player: a clip with buttons to play, pause and step, a slider, a speed and a frame counter. */

import { openClip } from "./clip.js";
import { tag } from "./elements.js";

const SPEEDS = [0.25, 0.5, 1, 2, 4];
const CONTROLS_HEIGHT = 34; // pixels, in elements.css

export class Player {
  element = tag("div", { className: "sdvideo-player", hidden: true, role: "group", ariaLabel: "Video player" });
  stage = tag("div", { className: "sdvideo-stage" });
  #clip = null;
  #loading = 0;
  #speed = 1;
  // Whether the user wants it to play; on screen or not.
  #playing = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  #onScreen = false;
  #observer = new IntersectionObserver((entries) => this.#setOnScreen(entries.at(-1).isIntersecting));

  constructor() {
    this.previous = button("Previous frame", "pi-step-backward", () => this.step(-1));
    this.toggle = button("Pause", "pi-pause", () => this.setPlaying(!this.#playing));
    this.next = button("Next frame", "pi-step-forward", () => this.step(1));
    this.slider = tag("input", { type: "range", min: 0, step: 1, ariaLabel: "Frame" });
    this.slider.oninput = () => this.seek(Number(this.slider.value));
    this.counter = tag("output", { ariaLabel: "Frame counter" });
    this.speed = speedMenu((speed) => this.setSpeed(speed));
    const controls = tag("div", { className: "sdvideo-controls" });
    controls.append(this.previous, this.toggle, this.next, this.slider, this.counter, this.speed);
    this.element.append(this.stage, controls);
    this.element.addEventListener("keydown", (event) => this.#onKey(event));
    this.#observer.observe(this.stage);
  }

  /** Show a clip in place of the one before; files and fps as in openClip. */
  async load(files, fps) {
    const loading = ++this.#loading;
    try {
      const clip = await openClip(files, fps, () => this.#update());
      if (loading !== this.#loading) return clip.close();
      this.#replace(clip);
    } catch (error) {
      if (loading === this.#loading) this.#fail(`Cannot show ${files[0].filename}: ${error.message}`);
    }
  }

  /** Pixels that the player needs at this width. */
  heightAt(width) {
    const { width: clipWidth, height: clipHeight } = this.#clip ?? { width: 3, height: 1 };
    return Math.round((width * clipHeight) / clipWidth) + CONTROLS_HEIGHT;
  }

  setPlaying(playing) {
    this.#playing = playing;
    this.#run();
    this.#update();
  }

  setSpeed(speed) {
    this.#speed = speed;
    this.#run();
  }

  seek(index) {
    this.setPlaying(false);
    const { numFrames } = this.#clip;
    this.#clip.show((index + numFrames) % numFrames).catch(ignoreAbort);
  }

  step(by) {
    this.seek(this.#clip.index + by);
  }

  close() {
    this.#loading++;
    this.#observer.disconnect();
    this.#clip?.close();
    this.#clip = null;
  }

  #replace(clip) {
    this.#clip?.close();
    this.#clip = clip;
    this.stage.replaceChildren(clip.element);
    this.stage.style.aspectRatio = `${clip.width} / ${clip.height}`;
    this.stage.title = `${clip.width} × ${clip.height}`;
    this.element.hidden = false;
    this.#update();
    this.#run();
  }

  #fail(message) {
    this.#clip?.close();
    this.#clip = null;
    this.stage.replaceChildren(tag("p", { role: "alert", textContent: message }));
    this.stage.style.aspectRatio = "3";
    this.element.hidden = false;
    this.#update();
  }

  #setOnScreen(onScreen) {
    this.#onScreen = onScreen;
    this.#run();
  }

  #run() {
    this.#clip?.pause();
    if (this.#playing && this.#onScreen) this.#clip?.play(this.#speed).catch(ignoreAbort);
  }

  #update() {
    const { numFrames = 0, index = 0 } = this.#clip ?? {};
    this.counter.value = numFrames ? `${index + 1} / ${numFrames}` : "";
    this.slider.max = Math.max(numFrames - 1, 0);
    this.slider.value = index;
    this.previous.disabled = this.next.disabled = this.slider.disabled = this.speed.disabled = numFrames < 2;
    this.toggle.disabled = !this.#clip || numFrames === 1;
    label(this.toggle, ...(this.#playing ? ["Pause", "pi-pause"] : ["Play", "pi-play"]));
  }

  #onKey(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step && event.target.tagName === "BUTTON" && !this.next.disabled) this.step(step);
    // What the controls use must not also delete or move nodes.
    if (step || [" ", "Enter", "Home", "End", "ArrowUp", "ArrowDown"].includes(event.key)) event.stopPropagation();
  }
}

function label(element, text, icon) {
  element.ariaLabel = element.title = text;
  element.firstChild.className = `pi ${icon}`;
}

function button(text, icon, onclick) {
  const element = tag("button", { type: "button", onclick });
  element.append(tag("i", { ariaHidden: "true" }));
  label(element, text, icon);
  return element;
}

function speedMenu(onSpeed) {
  const menu = tag("select", { ariaLabel: "Speed", title: "Speed" });
  menu.append(...SPEEDS.map((speed) => new Option(`${speed}×`, speed, speed === 1, speed === 1)));
  menu.onchange = () => onSpeed(Number(menu.value));
  return menu;
}

function ignoreAbort(error) {
  // A clip that is closed or paused gives up what it was about to show.
  if (error.name !== "AbortError") throw error;
}

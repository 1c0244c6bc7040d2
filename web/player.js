/** A player: a clip, or one of several, with buttons to play, pause and step, a slider, a speed and a frame counter. */

import { openClip } from "./clip.js";
import { mayMove } from "./clock.js";
import { tag } from "./elements.js";
import { say } from "./words.js";

const SPEEDS = [0.25, 0.5, 1, 2, 4];
const CONTROLS_HEIGHT = 34; // pixels, in elements.css

export class Player {
  element = tag("div", { className: "sdvideo-player", hidden: true, role: "group", ariaLabel: say("videoPlayer") });
  stage = tag("div", { className: "sdvideo-stage" });
  #choice = []; // clips that it can show, as in load
  #clip = null;
  #loading = 0;
  #speed = 1;
  // Whether the user wants it to play; on screen or not.
  #playing = mayMove();
  #onScreen = false;
  #runs = false; // playing now
  #observer = new IntersectionObserver((entries) => this.#setOnScreen(entries.at(-1).isIntersecting));
  #onHidden = () => this.#run();

  constructor() {
    this.previous = button(say("previousFrame"), "pi-step-backward", () => this.step(-1));
    this.toggle = button(say("pause"), "pi-pause", () => this.setPlaying(!this.#playing));
    this.next = button(say("nextFrame"), "pi-step-forward", () => this.step(1));
    this.slider = tag("input", { type: "range", min: 1, step: 1, ariaLabel: say("frame") });
    this.slider.oninput = () => this.seek(Number(this.slider.value) - 1);
    // It changes with every frame, which nobody wants read out.
    this.counter = tag("output", { ariaLabel: say("frameCounter"), ariaLive: "off" });
    this.speed = speedMenu((speed) => this.setSpeed(speed));
    this.clips = tag("select", { ariaLabel: say("clip"), title: say("clip") });
    this.clips.onchange = () => this.#open();
    this.controls = tag("div", { className: "sdvideo-controls" });
    this.controls.append(this.previous, this.toggle, this.next, this.slider, this.counter, this.speed);
    this.element.append(this.stage, this.controls);
    this.element.addEventListener("keydown", (event) => this.#onKey(event));
    this.#observer.observe(this.stage);
  }

  /** Show clips, one at a time, in place of those before: [{files, fps}] as in openClip. */
  async load(clips) {
    this.#choice = clips;
    const names = clips.map(({ files }, index) => say("clipName", { number: index + 1, name: files[0].filename }));
    this.clips.replaceChildren(...names.map((name, index) => new Option(name, index)));
    if (clips.length > 1) this.controls.prepend(this.clips);
    else this.clips.remove();
    await this.#open();
  }

  /** The files of the clip that is chosen. */
  get files() {
    return this.#choice[this.clips.selectedIndex]?.files ?? [];
  }

  async #open() {
    const loading = ++this.#loading;
    const { files, fps } = this.#choice[this.clips.selectedIndex];
    try {
      const clip = await openClip(files, fps, () => this.#showFrame());
      if (loading !== this.#loading) return clip.close();
      this.#replace(clip);
    } catch (error) {
      if (loading === this.#loading) this.#fail(error);
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
    this.#try(this.#clip.show((index + numFrames) % numFrames));
  }

  step(by) {
    this.seek(this.#clip.index + by);
  }

  close() {
    this.#loading++;
    this.#observer.disconnect();
    this.#setOnScreen(false);
    this.#take(null);
  }

  #take(clip) {
    this.#clip?.close();
    this.#clip = clip;
    this.#runs = false;
  }

  #replace(clip) {
    this.#take(clip);
    Object.assign(clip.element, { role: "img", ariaLabel: this.files[0].filename });
    this.stage.replaceChildren(clip.element);
    this.stage.style.aspectRatio = `${clip.width} / ${clip.height}`;
    this.stage.title = `${clip.width} × ${clip.height}`;
    this.element.hidden = false;
    this.#update();
    this.#run();
  }

  #fail({ message: error }) {
    this.#take(null);
    const message = say("cannotShow", { file: this.files[0].filename, error });
    this.stage.replaceChildren(tag("p", { role: "alert", textContent: message }));
    this.stage.style.aspectRatio = "3";
    this.element.hidden = false;
    this.#update();
  }

  #setOnScreen(onScreen) {
    this.#onScreen = onScreen;
    // Only while it is seen, as ComfyUI drops a subgraph without a word to the nodes in it.
    if (onScreen) document.addEventListener("visibilitychange", this.#onHidden);
    else document.removeEventListener("visibilitychange", this.#onHidden);
    this.#run();
  }

  #run() {
    // A clip that stands still may be about to show a frame, which a pause would call off.
    if (this.#runs) this.#clip.pause();
    this.#runs = Boolean(this.#clip) && this.#playing && this.#onScreen && !document.hidden;
    if (this.#runs) this.#try(this.#clip.play(this.#speed));
  }

  /** Wait for what the clip does; say so if it cannot. */
  async #try(action) {
    const clip = this.#clip;
    try {
      await action;
    } catch (error) {
      // A clip that is closed or paused gives up what it was about to show.
      if (clip === this.#clip && error.name !== "AbortError") this.#fail(error);
    }
  }

  #update() {
    const { numFrames = 0 } = this.#clip ?? {};
    this.slider.max = Math.max(numFrames, 1);
    this.previous.disabled = this.next.disabled = this.slider.disabled = this.speed.disabled = numFrames < 2;
    this.toggle.disabled = !this.#clip || numFrames === 1;
    label(this.toggle, ...(this.#playing ? [say("pause"), "pi-pause"] : [say("play"), "pi-play"]));
    this.#showFrame();
  }

  /** After each frame: as little as can be. */
  #showFrame() {
    const { numFrames = 0, index = 0 } = this.#clip ?? {};
    const text = numFrames ? `${index + 1} / ${numFrames}` : "";
    if (text === this.counter.value) return;
    this.counter.value = text;
    this.slider.value = index + 1;
  }

  #onKey(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step && event.target.tagName === "BUTTON" && !this.next.disabled) this.step(step);
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
  const menu = tag("select", { ariaLabel: say("speed"), title: say("speed") });
  menu.append(...SPEEDS.map((speed) => new Option(`${speed}×`, speed, speed === 1, speed === 1)));
  menu.onchange = () => onSpeed(Number(menu.value));
  return menu;
}

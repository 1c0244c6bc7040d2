/** A strip of a clip's frames, small, that marks those a node picks. */

import { tag } from "./elements.js";
import { say } from "./words.js";

export class FrameStrip {
  element = tag("div", { className: "sdvideo-strip" });
  #frames = tag("ol", { ariaLabel: say("frames"), tabIndex: 0, onwheel: scroll });
  #caption = tag("p", { role: "status" });
  #clip = null;
  #pick = null;

  constructor() {
    this.#frames.dataset.captureWheel = "true"; // of Vue nodes, where the canvas asks first
    this.element.append(this.#frames, this.#caption);
    this.clear("");
  }

  /** clip: {num_frames, width, height, every, thumbnails}, a thumbnail's URL for every `every`-th frame. */
  show(clip) {
    this.#clip = clip;
    this.#frames.replaceChildren(...clip.thumbnails.map(frameItem));
    this.#frames.hidden = false;
    this.#mark();
  }

  clear(message) {
    this.#clip = null;
    this.#frames.hidden = true;
    this.#say(message, true);
  }

  /** Say what is going on; the frames stay until there are others. */
  wait(message) {
    this.#say(message, false);
  }

  /** Say what went wrong; the frames stay, as nothing about them has changed. */
  warn(message) {
    this.#say(message, true);
  }

  /** pick: {offset, stride, num_frames} as in the node; null: nobody knows before it runs. */
  pick(pick) {
    this.#pick = pick;
    this.#mark();
  }

  #mark() {
    if (!this.#clip) return;
    const { every, num_frames: available, width, height } = this.#clip;
    const picked = this.#pick ? pickedFrames(this.#pick, available) : [];
    const marked = new Set(picked.map((frame) => Math.floor(frame / every)));
    [...this.#frames.children].forEach((item, index) => markItem(item, index * every, marked.has(index)));
    if (!this.#pick) return this.#say(say("pickedByLink", { available, width, height }), false);
    const missing = this.#pick.num_frames - picked.length;
    const lack = missing > 0 ? say("tooFew", { missing }) : "";
    this.#say(say("picked", { picked: picked.length, available, width, height }) + lack, missing > 0);
  }

  #say(message, isWrong) {
    // The same again would be read out again.
    if (this.#caption.textContent !== message) this.#caption.textContent = message;
    this.#caption.toggleAttribute("data-wrong", isWrong);
  }
}

/** Numbers of the frames that a node takes out of `available` ones. */
function pickedFrames({ offset, stride, num_frames }, available) {
  const frames = Array.from({ length: num_frames }, (_, index) => offset + index * stride);
  return frames.filter((frame) => frame < available);
}

/** A strip with the focus takes the wheel; else it is the canvas's, as over a text. */
function scroll(event) {
  if (document.activeElement !== this || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  event.stopPropagation();
  this.scrollLeft += event.deltaX || event.deltaY;
}

function frameItem(url) {
  const item = tag("li");
  item.append(tag("img", { src: url, loading: "lazy", draggable: false }));
  return item;
}

function markItem(item, frame, isPicked) {
  item.toggleAttribute("data-picked", isPicked);
  item.title = item.firstChild.alt = say(isPicked ? "framePicked" : "frameNumber", { frame });
}

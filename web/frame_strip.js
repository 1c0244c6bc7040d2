/** A strip of a clip's frames, small, that marks those a node picks. */

import { tag } from "./elements.js";
import { say } from "./words.js";

export class FrameStrip {
  element = tag("div", { className: "sdvideo-strip" });
  #frames = tag("ol", { ariaLabel: say("frames"), tabIndex: 0 });
  #caption = tag("p", { role: "status" });
  #clip = null;
  #pick = null;

  constructor() {
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

  /** pick: {offset, stride, num_frames} as in the node. */
  pick(pick) {
    this.#pick = pick;
    this.#mark();
  }

  #mark() {
    if (!this.#clip || !this.#pick) return;
    const { every, num_frames: available, width, height } = this.#clip;
    const picked = pickedFrames(this.#pick, available);
    const marked = new Set(picked.map((frame) => Math.floor(frame / every)));
    [...this.#frames.children].forEach((item, index) => markItem(item, index * every, marked.has(index)));
    const missing = this.#pick.num_frames - picked.length;
    const lack = missing > 0 ? say("tooFew", { missing }) : "";
    this.#say(say("picked", { picked: picked.length, available, width, height }) + lack, missing > 0);
  }

  #say(message, isWrong) {
    this.#caption.textContent = message;
    this.#caption.toggleAttribute("data-wrong", isWrong);
  }
}

/** Numbers of the frames that a node takes out of `available` ones. */
export function pickedFrames({ offset, stride, num_frames }, available) {
  const frames = Array.from({ length: num_frames }, (_, index) => offset + index * stride);
  return frames.filter((frame) => frame < available);
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

/** A strip of a clip's frames, small, that marks those a node picks. */

import { tag } from "./elements.js";

export class FrameStrip {
  element = tag("div", { className: "sdvideo-strip" });
  #frames = tag("ol", { ariaLabel: "Frames", tabIndex: 0 });
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
    this.#frames.replaceChildren(...clip.thumbnails.map((url, index) => frameItem(url, index * clip.every)));
    this.#frames.hidden = false;
    this.#mark();
  }

  clear(message) {
    this.#clip = null;
    this.#frames.hidden = true;
    this.#caption.textContent = message;
    this.#caption.toggleAttribute("data-wrong", true);
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
    [...this.#frames.children].forEach((item, index) => item.toggleAttribute("data-picked", marked.has(index)));
    const missing = this.#pick.num_frames - picked.length;
    const lack = missing > 0 ? `; ${missing} too few` : "";
    this.#caption.textContent = `${picked.length} of ${available} frames, ${width} × ${height}${lack}`;
    this.#caption.toggleAttribute("data-wrong", missing > 0);
  }
}

/** Numbers of the frames that a node takes out of `available` ones. */
export function pickedFrames({ offset, stride, num_frames }, available) {
  const frames = Array.from({ length: num_frames }, (_, index) => offset + index * stride);
  return frames.filter((frame) => frame < available);
}

function frameItem(url, frame) {
  const item = tag("li", { title: `Frame ${frame}` });
  item.append(tag("img", { src: url, alt: `Frame ${frame}`, loading: "lazy", draggable: false }));
  return item;
}

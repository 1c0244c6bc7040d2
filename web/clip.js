/** Clips that a player shows: frames decoded here, a video, or a picture that moves by itself. */

import { pictureAt } from "./clock.js";

const VIDEO = /\.(mp4|m4v|mov|webm|mkv)$/i;
const DECODED = { gif: "image/gif", webp: "image/webp", apng: "image/png", png: "image/png", avif: "image/avif" };

/**
 * Open one file, or several pictures that are the frames of one clip.
 *
 * files: [{filename, url}]; fps: frames per second of what does not say it itself; onFrame(): after each frame shown.
 * A clip has `element`, `width` and `height` in pixels, `numFrames` (0: frames cannot be told apart), `index`, and
 * show(index), play(speed), pause(), close().
 */
export async function openClip(files, fps, onFrame) {
  const [{ filename, url }] = files;
  if (VIDEO.test(filename)) return VideoClip.open(url, fps, onFrame);
  if (files.length > 1) return FrameClip.open(pictures(files, fps), onFrame);
  const type = DECODED[filename.split(".").pop().toLowerCase()];
  // Browsers offer it to pages from this machine or https only.
  const decodes = globalThis.ImageDecoder && type && (await ImageDecoder.isTypeSupported(type));
  if (decodes) return FrameClip.open(await decodedFrames(url, type, fps), onFrame);
  return VideoClip.open(url.replace("/view?", "/sdvideo/clip?"), fps, onFrame).catch(() => PictureClip.open(url));
}

/** Where ComfyUI's server has a file of a node's output. */
export function fileUrl({ filename, subfolder, type }, app) {
  return app.api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
}

async function download(url) {
  const response = await fetch(url, { cache: "no-cache" });
  if (!response.ok) throw new Error(`HTTP ${response.status}`);
  return response;
}

/** One file's frames; only the one that is shown is held. Durations in milliseconds. */
async function decodedFrames(url, type, fps) {
  const decoder = new ImageDecoder({ data: await (await download(url)).arrayBuffer(), type });
  await Promise.all([decoder.completed, decoder.tracks.ready]);
  return {
    numFrames: decoder.tracks.selectedTrack.frameCount,
    close: () => decoder.close(),
    async frame(frameIndex) {
      const { image } = await decoder.decode({ frameIndex });
      return { image, width: image.displayWidth, height: image.displayHeight, duration: image.duration / 1000 || 1000 / fps };
    },
  };
}

function pictures(files, fps) {
  const blobs = [];
  return {
    numFrames: files.length,
    close: () => {},
    async frame(index) {
      blobs[index] ??= await (await download(files[index].url)).blob();
      const image = await createImageBitmap(blobs[index]);
      return { image, width: image.width, height: image.height, duration: 1000 / fps };
    },
  };
}

class FrameClip {
  element = document.createElement("canvas");
  index = 0;
  #duration = 0;
  #frames;
  #onFrame;
  #request = 0;
  #run = 0;

  constructor(frames, onFrame) {
    this.#frames = frames;
    this.#onFrame = onFrame;
  }

  static async open(frames, onFrame) {
    const clip = new FrameClip(frames, onFrame);
    await clip.show(0).catch((error) => {
      frames.close();
      throw error;
    });
    return clip;
  }

  get numFrames() {
    return this.#frames.numFrames;
  }

  get width() {
    return this.element.width;
  }

  get height() {
    return this.element.height;
  }

  async show(index) {
    const request = ++this.#request;
    this.index = index;
    const frame = await this.#frames.frame(index);
    if (request === this.#request) this.#draw(frame);
    frame.image.close();
  }

  #draw({ image, width, height, duration }) {
    const context = this.element.getContext("2d");
    // A canvas of a new size is a new canvas, which costs more than the frame.
    if (this.width !== width || this.height !== height) Object.assign(this.element, { width, height });
    else context.clearRect(0, 0, width, height);
    context.drawImage(image, 0, 0);
    this.#duration = duration;
    this.#onFrame();
  }

  async play(speed) {
    const run = ++this.#run;
    let due = performance.now();
    while (this.numFrames > 1) {
      due = Math.max(due + this.#duration / speed, performance.now());
      await pictureAt(due);
      if (run !== this.#run) return;
      await this.show((this.index + 1) % this.numFrames);
    }
  }

  pause() {
    this.#run++;
    this.#request++;
  }

  close() {
    this.pause();
    this.#frames.close();
  }
}

class VideoClip {
  element = Object.assign(document.createElement("video"), { muted: true, loop: true, playsInline: true });
  #fps;

  constructor(fps) {
    this.#fps = fps;
  }

  static async open(url, fps, onFrame) {
    const clip = new VideoClip(fps);
    const video = clip.element;
    await new Promise((resolve, reject) => {
      video.onloadeddata = resolve;
      video.onerror = () => reject(new Error(video.error.message));
      video.src = url;
    });
    video.onseeked = video.ontimeupdate = onFrame;
    const onPlayed = () => {
      onFrame();
      video.requestVideoFrameCallback?.(onPlayed);
    };
    onPlayed();
    return clip;
  }

  get width() {
    return this.element.videoWidth;
  }

  get height() {
    return this.element.videoHeight;
  }

  get numFrames() {
    return Math.max(Math.round(this.element.duration * this.#fps), 1);
  }

  get index() {
    return Math.min(Math.floor(this.element.currentTime * this.#fps), this.numFrames - 1);
  }

  async show(index) {
    // The middle of a frame's time, as its start may round to the frame before.
    this.element.currentTime = (index + 0.5) / this.#fps;
  }

  async play(speed) {
    this.element.playbackRate = speed;
    await this.element.play();
  }

  pause() {
    this.element.pause();
  }

  close() {
    this.element.removeAttribute("src");
    this.element.load();
  }
}

/** For browsers without ImageDecoder: moves by itself or stands on its first frame. */
class PictureClip {
  element = document.createElement("div");
  numFrames = 0;
  index = 0;
  #picture = new Image();
  #still = document.createElement("canvas");

  static async open(url) {
    const clip = new PictureClip();
    clip.#picture.src = url;
    await clip.#picture.decode();
    Object.assign(clip.#still, { width: clip.width, height: clip.height });
    clip.#still.getContext("2d").drawImage(clip.#picture, 0, 0);
    clip.pause();
    return clip;
  }

  get width() {
    return this.#picture.naturalWidth;
  }

  get height() {
    return this.#picture.naturalHeight;
  }

  async show() {}

  async play() {
    this.element.replaceChildren(this.#picture);
  }

  pause() {
    this.element.replaceChildren(this.#still);
  }

  close() {}
}

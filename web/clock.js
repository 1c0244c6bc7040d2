/** The clock of all clips that play: one request a picture of the browser, and none while the page is hidden. */

const waiting = new Set(); // {due, resolve}
let isRequested = false;

/** Whether the user lets pictures move by themselves. */
export function mayMove() {
  return !matchMedia("(prefers-reduced-motion: reduce)").matches;
}

/** Waits for the browser's first picture at `due` or after, in milliseconds of performance.now(). */
export function pictureAt(due) {
  return new Promise((resolve) => {
    waiting.add({ due, resolve });
    request();
  });
}

function request() {
  if (isRequested || !waiting.size) return;
  isRequested = true;
  requestAnimationFrame(tick);
}

function tick(now) {
  isRequested = false;
  for (const wait of waiting) {
    if (wait.due > now) continue;
    waiting.delete(wait);
    wait.resolve();
  }
  request();
}

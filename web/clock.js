/** The clock of all clips that play: one request a picture of the browser, and none while the page is hidden. */

const waiting = new Set(); // {due, resolve}
let isRequested = false;

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

/** Uploads: pictures and videos from this computer into ComfyUI's input folder. */

// One file of these is a clip by itself; other pictures are frames of one, in a folder.
export const CLIP = /\.(gif|apng|mp4|webm|mov|mkv|avi|m4v)$/i;

const AT_ONCE = 4;

/** Send files into a subfolder of the input folder. Returns their names there; onProgress(fraction) in 0..1. */
export async function upload(files, subfolder, api, onProgress) {
  const names = [];
  let next = 0;
  let done = 0;
  const sendNext = async () => {
    while (next < files.length) {
      const index = next++;
      names[index] = await send(files[index], subfolder, api).catch((error) => {
        next = files.length; // the others are of no use without it
        throw error;
      });
      onProgress(++done / files.length);
    }
  };
  onProgress(0);
  await Promise.all(Array.from({ length: AT_ONCE }, sendNext));
  return names;
}

async function send(file, subfolder, api) {
  const body = new FormData();
  // By default a file of a chosen folder goes with its path in there.
  body.append("image", file, file.name);
  body.append("subfolder", subfolder);
  const response = await api.fetchApi("/upload/image", { method: "POST", body });
  if (!response.ok) throw new Error(`${file.name}: HTTP ${response.status}`);
  return (await response.json()).name;
}

/** The pictures and videos of a drop, those in folders too: {files, folder}, the name of the folder if it is one. */
export async function readDrop(transfer) {
  // The list is empty as soon as this function waits.
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const files = entries.length ? (await Promise.all(entries.map(readEntry))).flat() : [...transfer.files];
  return { files: files.filter(isMedia), folder: entries.length === 1 && entries[0].isDirectory ? entries[0].name : "" };
}

/** The pictures and videos that were chosen in a file dialog, as in readDrop. */
export function readChoice(input) {
  const files = [...input.files];
  // A chosen folder comes with all that is in its folders; what is right in it has a path of two parts.
  const isInside = ({ webkitRelativePath: path }) => path.split("/").length <= 2;
  return { files: files.filter(isMedia).filter(isInside), folder: files[0]?.webkitRelativePath.split("/")[0] ?? "" };
}

function isMedia(file) {
  // Some systems know no type of rarer kinds of video.
  return /^(image|video)\//.test(file.type) || CLIP.test(file.name);
}

async function readEntry(entry) {
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader();
  const files = [];
  for (;;) {
    // Browsers hand out a folder in parts, at the end an empty one.
    const part = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!part.length) return files;
    for (const inside of part) if (inside.isFile) files.push(...(await readEntry(inside)));
  }
}

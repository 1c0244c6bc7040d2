/** The comments of a GIF file, where Save GIF keeps the graphs that made it. */

// Block labels and layout: GIF89a specification, sections 15 to 27.
const EXTENSION = 0x21;
const IMAGE = 0x2c;
const COMMENT = 0xfe;

/** All comments of a GIF file (Uint8Array) as texts; none when it is no GIF, those before a cut when it is cut. */
function readGifComments(bytes) {
  const comments = [];
  if (!/^GIF8[79]a/.test(latin1(bytes.subarray(0, 6)))) return comments;
  let position = 13 + colorTableSize(bytes[10]);
  while (bytes[position] === EXTENSION || bytes[position] === IMAGE) {
    const start = position + (bytes[position] === EXTENSION ? 2 : 11 + colorTableSize(bytes[position + 9]));
    const blocks = subBlocks(bytes, start);
    if (bytes[position] === EXTENSION && bytes[position + 1] === COMMENT) comments.push(decode(blocks));
    position = start + blocks.reduce((length, block) => length + block.length + 1, 1);
  }
  return comments;
}

/** The graphs in a GIF's comments: {workflow, prompt}, both optional, or null when there are none. */
export function readGifGraphs(bytes) {
  for (const comment of readGifComments(bytes)) {
    const graphs = parseGraphs(comment);
    if (graphs) return graphs;
  }
  return null;
}

function colorTableSize(flags) {
  return flags & 0x80 ? 3 << ((flags & 7) + 1) : 0;
}

function subBlocks(bytes, position) {
  const blocks = [];
  while (bytes[position] > 0) {
    const end = position + 1 + bytes[position];
    blocks.push(bytes.subarray(position + 1, end));
    position = end;
  }
  return blocks;
}

function decode(blocks) {
  const decoder = new TextDecoder();
  return blocks.map((block) => decoder.decode(block, { stream: true })).join("") + decoder.decode();
}

function latin1(bytes) {
  return String.fromCharCode(...bytes);
}

function parseGraphs(comment) {
  const graphs = parseJson(comment) ?? parseJson(withoutNaN(comment));
  return graphs?.workflow || graphs?.prompt ? graphs : null;
}

/** Null when it is none. */
function parseJson(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** Python writes NaN for a node that is to run every time; JSON has no such number. */
function withoutNaN(json) {
  let isText = false;
  // Each match is short: one of a whole text would not fit on the stack when the text is long.
  return json.replace(/\\.|"|-?Infinity|NaN/gs, (part) => {
    if (part === '"') isText = !isText;
    return isText || part === '"' || part[0] === "\\" ? part : "null";
  });
}

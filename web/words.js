/** Words: all that the pack's part of the page says, in the languages that it knows. */

import { app } from "../../scripts/app.js";

const FALLBACK = "en";

const WORDS = {
  // The player
  videoPlayer: { en: "Video player", zh: "视频播放器" },
  clip: { en: "Clip", zh: "片段" },
  clipName: { en: "{number}: {name}", zh: "{number}：{name}" },
  previousFrame: { en: "Previous frame", zh: "上一帧" },
  nextFrame: { en: "Next frame", zh: "下一帧" },
  play: { en: "Play", zh: "播放" },
  pause: { en: "Pause", zh: "暂停" },
  frame: { en: "Frame", zh: "帧" },
  frameCounter: { en: "Frame counter", zh: "帧计数" },
  speed: { en: "Speed", zh: "速度" },
  cannotShow: { en: "Cannot show {file}: {error}", zh: "无法显示 {file}：{error}" },
  // Its menu
  openInNewTab: { en: "Open in New Tab", zh: "在新标签页中打开" },
  saveFile: { en: "Save File", zh: "保存文件" },
  copyPath: { en: "Copy Path", zh: "复制路径" },
  copied: { en: "Copied", zh: "已复制" },
  // Load Frame Sequence
  loadFrames: { en: "Load Frame Sequence", zh: "加载帧序列" },
  framesToLoad: { en: "Frames to load", zh: "要加载的帧" },
  chooseFiles: { en: "Choose Files", zh: "选择文件" },
  chooseFolder: { en: "Choose Folder", zh: "选择文件夹" },
  upload: { en: "Upload", zh: "上传" },
  cannotUpload: { en: "Cannot upload {error}", zh: "无法上传：{error}" },
  noMedia: { en: "nothing: these are no pictures or videos", zh: "没有图片或视频" },
  onlyOneClip: {
    en: "Only {file} is loaded: a GIF or video is a clip by itself, and a node loads one.",
    zh: "只加载了 {file}：一个 GIF 或视频就是一个片段，每个节点只加载一个。",
  },
  onlyPictures: {
    en: "Only the pictures are loaded: a GIF or video among them is a clip by itself.",
    zh: "只加载了图片：其中的 GIF 或视频是单独的片段。",
  },
  frames: { en: "Frames", zh: "帧列表" },
  frameNumber: { en: "Frame {frame}", zh: "第 {frame} 帧" },
  framePicked: { en: "Frame {frame}, picked", zh: "第 {frame} 帧，已选取" },
  picked: {
    en: "{picked} of {available} frames, {width} × {height}",
    zh: "已选取 {picked} / {available} 帧，{width} × {height}",
  },
  pickedByLink: {
    en: "{available} frames, {width} × {height}; a link decides which are picked",
    zh: "{available} 帧，{width} × {height}；由连线决定选取哪些帧",
  },
  tooFew: { en: "; {missing} too few", zh: "；缺少 {missing} 帧" },
  reading: { en: "Reading {source} …", zh: "正在读取 {source} …" },
  cannotRead: { en: "Cannot read {source}: {error}", zh: "无法读取 {source}：{error}" },
  // Sampling and training
  livePreview: { en: "Live preview", zh: "实时预览" },
  clipSoFar: { en: "The clip so far", zh: "目前的片段" },
  progress: { en: "Progress", zh: "进度" },
  training: { en: "Training", zh: "训练" },
  lossCurve: { en: "Loss curve, {loss} now", zh: "损失曲线，当前 {loss}" },
  loss: { en: "loss {loss}", zh: "损失 {loss}" },
  stepsPerSecond: { en: "{speed} steps/s", zh: "{speed} 步/秒" },
  secondsPerStep: { en: "{seconds} s/step", zh: "{seconds} 秒/步" },
  timeLeft: { en: "{time} left", zh: "剩余 {time}" },
};

/** A phrase in the language of ComfyUI's setting, with values in place of the names in braces. */
export function say(phrase, values = {}) {
  const language = app.extensionManager.setting.get("Comfy.Locale")?.split("-")[0];
  const words = WORDS[phrase][language] ?? WORDS[phrase][FALLBACK];
  return words.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

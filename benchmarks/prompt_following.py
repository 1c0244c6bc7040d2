"""Prompt-following benchmark: how often the demo model draws what held-out prompts say, read back by image processing.

python benchmarks/prompt_following.py [--steps 50 20] [--limit 8] [--sheet sheet.png] [--video-to-video | --few-steps]

Writes results/prompt-following.json, -video-to-video.json or -few-steps.json, with --few-steps --without-lora its
control; only prints with another model or LoRA, or fewer than 64 prompts. The prompts are of scenes whose colour, shape
and motion the model never saw together. A caption that names no background means black. The row `drawn` reads drawn
clips of the same scenes: below 100 % the reader is at fault.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from sdvideo_core import SDVideo, demo_model
from sdvideo_core.demo import few_steps
from sdvideo_core.demo.clips import COLORS, NOUNS, NUM_FRAMES, SIZE, UNSEEN, Scene, caption, draw_clip, scenes
from sdvideo_core.demo.reading import Reading, read_scene
from sdvideo_core.frames import video_to_images

GUIDANCE_SCALE = 2.0
STEPS, VIDEO_STEPS, FEW_STEPS = (50, 20), (20,), (4,)
STRENGTH = 0.7
PROMPTS = 64
SEED = 0  # of the choice of scenes, captions and drawn clips; a video's own seed is its prompt's number

PARTS = ("color", "shape", "motion")
SHEET_ROWS, SHEET_COLUMNS = 8, 8
TEXT_HEIGHT, FONT_SIZE = 22, 14


@dataclass(frozen=True)
class Case:
    """A prompt, what its video must show, and the clip it is made from, if any: uint8 (F, H, W, 3)."""

    text: str
    scene: Scene
    source: np.ndarray | None = None


@dataclass(frozen=True)
class Run:
    """The videos of all cases, uint8 (F, H, W, 3), with what they show and the seconds each took."""

    videos: list[np.ndarray]
    readings: list[Reading]
    seconds: list[float]


def held_out_scenes(count: int, rng: np.random.Generator, moving: bool = False) -> list[Scene]:
    """That many scenes, with motions, colours and shapes as even as they can be; scenes repeat where they must."""
    pool = [scene for scene in scenes() if scene.held_out and not (moving and scene.motion == "still")]
    used: Counter[object] = Counter()
    chosen = []
    for _ in range(count):
        costs = [used[s.motion] + used[s.color] + used[s.shape] / 2 + 2 * used[s] for s in pool]
        scene = pool[int(rng.choice(np.flatnonzero(np.array(costs) == min(costs))))]
        used.update([scene, scene.motion, scene.color, scene.shape])
        chosen.append(scene)
    return chosen


def text_cases(count: int) -> list[Case]:
    rng = np.random.default_rng(SEED)
    return [Case(caption(scene, rng), scene) for scene in held_out_scenes(count, rng)]


def video_cases(count: int) -> dict[str, list[Case]]:
    """Clips of moving shapes to be given another colour: by a prompt that says all, and by one that names no motion."""
    rng = np.random.default_rng(SEED)
    said, unsaid = [], []
    for old in held_out_scenes(count, rng, moving=True):
        source = draw_clip(old, rng)
        scene = replace(old, color=other_color(old, rng))
        said.append(Case(caption(scene, rng), scene, source))
        unsaid.append(Case(f"a {scene.color} {rng.choice(NOUNS[scene.shape])}", scene, source))
    return {"motion said": said, "motion unsaid": unsaid}


def other_color(scene: Scene, rng: np.random.Generator) -> str:
    return str(rng.choice([c for c in COLORS if c != scene.color and (scene.background, c) not in UNSEEN]))


def generate(model: SDVideo, case: Case, seed: int, steps: int, sampling: Mapping[str, Any]) -> np.ndarray:
    source = case.source
    video = model(
        case.text,
        image_size=(SIZE, SIZE),
        num_frames=NUM_FRAMES,
        initial_frames=None if source is None else [Image.fromarray(frame) for frame in source],
        t_start=None if source is None else round(STRENGTH * steps),
        seed=seed,
        **{**sampling, "timesteps": steps},
    )
    return np.stack([np.asarray(image) for image in video_to_images(video)])


def run_cases(draw: Callable[[Case, int], np.ndarray], cases: list[Case], what: str) -> Run:
    videos, readings, seconds = [], [], []
    for seed, case in enumerate(tqdm(cases, what)):
        start = time.perf_counter()
        videos.append(draw(case, seed))
        seconds.append(time.perf_counter() - start)
        readings.append(read_scene(videos[-1]))
    return Run(videos, readings, seconds)


def right(reading: Reading, scene: Scene) -> dict[str, bool]:
    parts = {part: getattr(reading, part) == getattr(scene, part) for part in PARTS}
    return parts | {"all three": all(parts.values()), "background": reading.background == scene.background}


def share(hits: Sequence[bool]) -> dict[str, object]:
    """Percentage with Wilson's 95 % interval."""
    low, high = wilson(sum(hits), len(hits))
    return {"percent": percent(hits), "interval": [round(100 * low, 1), round(100 * high, 1)]}


def percent(hits: Sequence[bool]) -> float:
    return round(100 * sum(hits) / len(hits), 1)


def wilson(hits: int, count: int, z: float = 1.96) -> tuple[float, float]:
    middle = hits + z**2 / 2
    spread = z * math.sqrt(hits * (count - hits) / count + z**2 / 4)
    return max(0.0, (middle - spread) / (count + z**2)), min(1.0, (middle + spread) / (count + z**2))


def summary(cases: list[Case], readings: list[Reading]) -> dict[str, object]:
    """Shares right of all cases, of each motion and of each shape, and how often what was read as what instead."""
    rights = [right(reading, case.scene) for reading, case in zip(readings, cases, strict=True)]
    return {
        **{part: share([r[part] for r in rights]) for part in rights[0]},
        "by motion": breakdown(rights, [case.scene.motion for case in cases]),
        "by shape": breakdown(rights, [case.scene.shape for case in cases]),
        "mistakes": mistakes(cases, readings),
    }


def breakdown(rights: list[dict[str, bool]], groups: list[str]) -> dict[str, dict[str, float]]:
    result = {}
    for group in sorted(set(groups)):
        own = [r for r, name in zip(rights, groups, strict=True) if name == group]
        parts = {part: percent([r[part] for r in own]) for part in (*PARTS, "all three")}
        result[group] = {"prompts": len(own), **parts}
    return result


def mistakes(cases: list[Case], readings: list[Reading]) -> dict[str, dict[str, int]]:
    result = {}
    for part in (*PARTS, "background"):
        pairs = [(getattr(c.scene, part), getattr(r, part)) for c, r in zip(cases, readings, strict=True)]
        wrong = Counter(f"{said} read as {read}" for said, read in pairs if said != read)
        result[part] = dict(wrong.most_common())
    return result


def measure_text(model: SDVideo, args: argparse.Namespace) -> tuple[dict[str, object], list[tuple[str, np.ndarray]]]:
    cases = text_cases(args.limit)
    rng = np.random.default_rng(SEED)
    drawn = run_cases(lambda case, _: draw_clip(case.scene, rng), cases, "drawn")
    result: dict[str, object] = {"drawn": summary(cases, drawn.readings)}
    rows = []
    for steps in args.steps or (FEW_STEPS if args.few_steps else STEPS):
        run = run_cases(lambda c, s, n=steps: generate(model, c, s, n, sampling(args)), cases, f"{steps} steps")
        result[f"{steps} steps"] = {"seconds": seconds(run), **summary(cases, run.readings)}
        rows = rows or [(cases[i].text, run.videos[i]) for i in one_of_each(case.scene.motion for case in cases)]
    return result, rows


def measure_video(model: SDVideo, args: argparse.Namespace) -> tuple[dict[str, object], list[tuple[str, np.ndarray]]]:
    result: dict[str, object] = {"strength": STRENGTH}
    rows = []
    for steps in args.steps or VIDEO_STEPS:
        for name, cases in video_cases(args.limit).items():
            what = f"{steps} steps, {name}"
            run = run_cases(lambda c, s, n=steps: generate(model, c, s, n, sampling(args)), cases, what)
            result[what] = {"seconds": seconds(run), **summary_of_change(cases, run.readings)}
            if not rows:
                for i in one_of_each(case.scene.motion for case in cases):
                    rows += [("drawn", sources(cases)[i]), (cases[i].text, run.videos[i])]
    return result, rows


def sampling(args: argparse.Namespace) -> Mapping[str, Any]:
    return few_steps.SAMPLING if args.few_steps else {"guidance_scale": args.guidance_scale}


def summary_of_change(cases: list[Case], readings: list[Reading]) -> dict[str, object]:
    """Shares of videos that got the new colour, and that kept what the clip showed before."""
    before = [read_scene(source) for source in sources(cases)]
    pairs = list(zip(before, readings, strict=True))
    return {
        "new color": share([reading.color == case.scene.color for case, reading in zip(cases, readings, strict=True)]),
        "old color kept": share([old.color == new.color for old, new in pairs]),
        "motion kept": share([old.motion == new.motion for old, new in pairs]),
        "shape kept": share([old.shape == new.shape for old, new in pairs]),
        "background kept": share([old.background == new.background for old, new in pairs]),
        "mistakes": mistakes(cases, readings),
    }


def sources(cases: list[Case]) -> list[np.ndarray]:
    return [case.source for case in cases if case.source is not None]


def seconds(run: Run) -> float:
    """Median time of a video."""
    return round(statistics.median(run.seconds), 3)


def one_of_each(names: Iterable[str]) -> list[int]:
    """Where each name comes first."""
    first: dict[str, int] = {}
    for number, name in enumerate(names):
        first.setdefault(name, number)
    return list(first.values())[:SHEET_ROWS]


def draw_sheet(rows: list[tuple[str, np.ndarray]]) -> Image.Image:
    """A picture with 8 frames of each video in a row, its prompt above."""
    height = SIZE + TEXT_HEIGHT
    sheet = Image.new("RGB", (SHEET_COLUMNS * (SIZE + 2), len(rows) * height), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=FONT_SIZE)
    for number, (text, video) in enumerate(rows):
        draw.text((2, number * height + 2), text, "black", font)
        for column, frame in enumerate(np.linspace(0, len(video) - 1, SHEET_COLUMNS).round().astype(int)):
            sheet.paste(Image.fromarray(video[frame]), (column * (SIZE + 2), number * height + TEXT_HEIGHT))
    return sheet


def report(args: argparse.Namespace, result: dict[str, object]) -> dict[str, object]:
    kind = "video to video with a new colour" if args.video_to_video else "text to video"
    kind += (" without" if args.without_lora else " with") + " the few-step LoRA" if args.few_steps else ""
    name = args.model.name if args.model else "demo model"
    return {
        "what": f"{name}, {kind}, {args.limit} held-out prompts, {NUM_FRAMES} frames at {SIZE} px",
        "device": torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "amp": args.amp,
        "torch": torch.__version__,
        "guidance_scale": sampling(args)["guidance_scale"],
        **result,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model's directory instead of the demo model's")
    parser.add_argument("--limit", type=int, default=PROMPTS, help="number of prompts")
    parser.add_argument("--steps", type=int, nargs="+", help="step counts, one after the other")
    parser.add_argument("--guidance-scale", type=float, default=GUIDANCE_SCALE)
    parser.add_argument("--amp", action="store_true", help="mixed precision")
    parser.add_argument("--video-to-video", action="store_true", help="give drawn clips another colour")
    parser.add_argument("--few-steps", action="store_true", help="with the demo model's few-step LoRA")
    parser.add_argument("--without-lora", action="store_true", help="with --few-steps: the same sampling without it")
    parser.add_argument("--lora", type=Path, default=few_steps.LORA, help="another file in its place")
    parser.add_argument("--sheet", type=Path, help="write a picture of some videos here")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if args.without_lora and not args.few_steps:
        parser.error("--without-lora belongs to --few-steps")
    model = SDVideo(args.model or demo_model(), args.device, amp=args.amp)
    if args.few_steps and not args.without_lora:
        model.load_lora(args.lora)
    result, rows = (measure_video if args.video_to_video else measure_text)(model, args)
    if args.sheet:
        draw_sheet(rows).save(args.sheet)
    text = json.dumps(report(args, result), indent=2)
    if not args.model and args.lora == few_steps.LORA and args.limit >= PROMPTS:
        kind = "-video-to-video" if args.video_to_video else "-few-steps" if args.few_steps else ""
        name = f"prompt-following{kind}{'-without-lora' if args.without_lora else ''}"
        (Path(__file__).parent / "results" / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(text)  # noqa: T201


if __name__ == "__main__":
    main()

"""Frames in and out of the graph: load a sequence, save a clip."""

from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io, ui

from ..sdvideo_core.frames import images_to_frames
from ..sdvideo_core.playback import DEFAULT_OPTIONS, DITHERS, FASTEST_FPS, MAX_LOOPS, PALETTES, SaveOptions
from ..sdvideo_core.video_io import WRITERS, check_output, load_sequence
from .comfy_bridge.folders import input_path, input_sequences, output_file, sequence_stamp, workflow_graphs
from .comfy_bridge.progress import node_progress

EXTENSIONS = {"gif": ".gif", "webp": ".webp", "mp4": ".mp4", "png sequence": ""}  # none: a folder


class SDVideoLoadFrameSequence(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SDVideoLoadFrameSequence",
            display_name="Load Frame Sequence",
            category="SDVideo",
            description="Loads frames from a folder of pictures, a GIF or a video in ComfyUI's input folder.",
            search_aliases=["load video", "load gif", "image sequence", "load frames", "加载视频", "图像序列"],
            inputs=[
                io.Combo.Input(
                    "source",
                    options=input_sequences(),
                    tooltip="A folder of pictures (in natural order: frame2 before frame10), a GIF, WebP or video.",
                ),
                io.Int.Input("num_frames", default=16, min=1, max=1024, tooltip="How many frames to load."),
                io.Int.Input("offset", default=0, min=0, max=100000, tooltip="Frames to skip at the start."),
                io.Int.Input("stride", default=1, min=1, max=1000, tooltip="Take every n-th frame."),
                io.Int.Input(
                    "width",
                    default=256,
                    min=64,
                    max=2048,
                    step=8,
                    tooltip="Frames are scaled to cover width x height, then cropped around the centre.",
                ),
                io.Int.Input("height", default=256, min=64, max=2048, step=8, tooltip="See width."),
            ],
            outputs=[
                io.Image.Output(tooltip="The frames, in order."),
                io.Int.Output("num_frames", display_name="num_frames", tooltip="How many frames there are."),
            ],
        )

    @classmethod
    def validate_inputs(cls, source: str | None) -> bool | str:
        if source is None:  # it comes through a link, and is checked when it is there
            return True
        try:
            return input_path(source).exists() or f"{source} is not in ComfyUI's input folder any more"
        except ValueError as error:
            return str(error)

    @classmethod
    def fingerprint_inputs(cls, source: str | None, **_) -> list | float:
        return float("nan") if source is None else sequence_stamp(input_path(source))  # NaN: run every time

    @classmethod
    def execute(cls, source, num_frames, offset, stride, width, height) -> io.NodeOutput:
        images = load_sequence(input_path(source), num_frames, offset, stride, (width, height))
        frames = images_to_frames(images).add(1).div(2)  # (F, 3, H, W) in 0..1
        return io.NodeOutput(frames.movedim(1, 3).contiguous(), len(images))


class SDVideoSaveGIF(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SDVideoSaveGIF",
            display_name="Save GIF",
            category="SDVideo",
            description="Saves frames as a GIF, WebP, MP4 or a folder of PNG files in ComfyUI's output folder. "
            "Prompt and workflow are stored in the file.",
            search_aliases=[
                "save video",
                "export gif",
                "animated gif",
                "save mp4",
                "save webp",
                "image sequence",
                "保存视频",
                "导出动图",
            ],
            inputs=[
                io.Image.Input("images", tooltip="The frames, in order."),
                io.String.Input(
                    "filename_prefix",
                    default="SDVideo",
                    tooltip="Start of the file name; may hold a subfolder and fields such as %year%-%month%-%day%.",
                ),
                io.Float.Input(
                    "fps",
                    default=8.0,
                    min=0.1,
                    max=float(max(FASTEST_FPS.values())),
                    step=0.1,
                    tooltip="Frames per second, on average exact. At most 50 as gif, 90 as webp.",
                ),
                *_how_to_save(),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, fps: float | None, format: str | None = "gif") -> bool | str:
        """Before a clip is made at length; what comes through a link, None, is checked when it is there."""
        if format not in (None, *EXTENSIONS):
            return f"format {format!r} is not known; choose {', '.join(EXTENSIONS)}"
        try:
            if fps is not None and format is not None:
                check_output(f"clip{EXTENSIONS[format] or '.mp4'}", fps)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, images, filename_prefix: str, fps: float, format: str = "gif", **options) -> io.NodeOutput:
        settings = SaveOptions(**options)
        num_frames, height, width, _ = images.shape
        path, subfolder = output_file(filename_prefix, EXTENSIONS[format], width, height)
        video = images[..., :3].movedim(3, 0)[None]  # (1, 3, F, H, W)
        graphs = workflow_graphs(cls.hidden.prompt, cls.hidden.extra_pnginfo)
        WRITERS[EXTENSIONS[format]](video, path, fps, graphs, settings, node_progress())
        # ComfyUI counts every dict of an output as a file of the job's.
        about = [fps, len(settings.play_order(num_frames)), format, str(path)]
        return io.NodeOutput(ui={**_shown(path, subfolder, format), "sdvideo": [about]})


def _how_to_save() -> list[io.Input]:
    """Inputs that came later: graphs made before them lack them."""
    return [
        io.Combo.Input(
            "format",
            options=list(EXTENSIONS),
            default="gif",
            optional=True,
            tooltip="gif has 256 colours and plays everywhere; webp and mp4 have all colours and are smaller; "
            "png sequence is a folder of single frames without loss.",
        ),
        io.Combo.Input(
            "palette",
            options=list(PALETTES),
            default=DEFAULT_OPTIONS.palette,
            optional=True,
            tooltip="gif: the same 256 colours for the whole clip, or others for each frame, which is closer "
            "to the picture but may flicker and makes larger files.",
        ),
        io.Combo.Input(
            "dither",
            options=list(DITHERS),
            default=DEFAULT_OPTIONS.dither,
            optional=True,
            tooltip="gif, to show more than 256 colours: floyd-steinberg is smoothest, bayer keeps still what "
            "stands still, none makes flat colours and the smallest files.",
        ),
        io.Int.Input(
            "loop",
            default=DEFAULT_OPTIONS.loop,
            min=0,
            max=MAX_LOOPS,
            optional=True,
            tooltip="gif and webp: how many times it plays; 0 is for ever.",
        ),
        io.Boolean.Input(
            "ping_pong",
            default=DEFAULT_OPTIONS.ping_pong,
            optional=True,
            tooltip="Plays forwards, then backwards, so that a loop has no jump.",
        ),
    ]


def _shown(path: Path, subfolder: str, format: str) -> dict:
    """What the browser shows by itself, on the canvas and in Vue nodes."""
    # It takes what is marked as animated for a video unless it is a WebP, so a GIF goes as an image, which moves too.
    animated = {"animated": (True,)} if format in ("webp", "mp4") else {}
    if path.is_dir():
        subfolder, files = f"{subfolder}/{path.name}".lstrip("/"), sorted(file.name for file in path.iterdir())
    else:
        files = [path.name]
    return {"images": [ui.SavedResult(file, subfolder, io.FolderType.output) for file in files], **animated}

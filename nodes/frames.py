"""Frames in and out of the graph: load a sequence, save a GIF."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..sdvideo_core.frames import images_to_frames
from ..sdvideo_core.video_io import load_sequence, save_gif
from .comfy_bridge.folders import input_path, input_sequences, output_file, stamp, workflow_comment


class SDVideoLoadFrameSequence(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SDVideoLoadFrameSequence",
            display_name="Load Frame Sequence",
            category="SDVideo",
            description="Loads frames from a folder of pictures, a GIF or a video in ComfyUI's input folder.",
            search_aliases=["load video", "load gif", "image sequence", "load frames"],
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
        return float("nan") if source is None else stamp(input_path(source))  # NaN: run every time

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
            description="Saves frames as an animated GIF in ComfyUI's output folder. "
            "Prompt and workflow are stored in its comment as JSON.",
            search_aliases=["save video", "export gif", "animated gif"],
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
                    max=50.0,
                    step=0.1,
                    tooltip="Frames per second, on average exact.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images, filename_prefix: str, fps: float) -> io.NodeOutput:
        _, height, width, _ = images.shape
        path, subfolder = output_file(filename_prefix, ".gif", width, height)
        video = images[..., :3].movedim(3, 0)[None]  # (1, 3, F, H, W)
        save_gif(video, path, fps, workflow_comment(cls.hidden.prompt, cls.hidden.extra_pnginfo))
        saved = ui.SavedResult(path.name, subfolder, io.FolderType.output)
        return io.NodeOutput(ui=ui.SavedImages([saved]))

"""Video latents: where a video starts, from nothing or from frames, and back to pictures."""

from __future__ import annotations

from comfy_api.latest import io

from ..sdvideo_core.frames import check_size
from .comfy_bridge.encoders import decode_latent
from .comfy_bridge.sampling import empty_latent


class SDVideoLatentInit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SDVideoLatentInit",
            display_name="Video Latent",
            category="SDVideo",
            description="An empty latent video for text to video, or the latents of frames for video to video.",
            search_aliases=[
                "EmptyLatentImage",
                "empty latent",
                "latent video",
                "video size",
                "encode frames",
                "vid2vid",
                "空潜空间",
                "视频尺寸",
            ],
            inputs=[
                io.Int.Input(
                    "width",
                    default=256,
                    min=64,
                    max=2048,
                    step=8,
                    tooltip="Width in pixels. Best near what the model was trained on: ModelScope 256, "
                    "ZeroScope 576, Potat1 1024. Frames, if connected, bring their own.",
                ),
                io.Int.Input(
                    "height",
                    default=256,
                    min=64,
                    max=2048,
                    step=8,
                    tooltip="Height in pixels. ModelScope 256, ZeroScope 320, Potat1 576. Frames, if connected, "
                    "bring their own.",
                ),
                io.Int.Input(
                    "num_frames",
                    default=16,
                    min=1,
                    max=1024,
                    tooltip="Length in frames. ModelScope was trained on 16, ZeroScope on 24; much longer videos "
                    "fall apart. Frames, if connected, bring their own.",
                ),
                io.Image.Input("frames", optional=True, tooltip="Frames to start from (video to video). Needs a VAE."),
                io.Vae.Input("vae", optional=True, tooltip="The model's autoencoder, to encode the frames with."),
            ],
            outputs=[io.Latent.Output(tooltip="One latent per frame.")],
        )

    @classmethod
    def execute(cls, width: int, height: int, num_frames: int, frames=None, vae=None) -> io.NodeOutput:
        if frames is None:
            check_size(width, height)
            return io.NodeOutput({"samples": empty_latent(width, height, num_frames)})
        if not len(frames):
            raise ValueError("frames holds no picture; connect at least one")
        if vae is None:
            raise ValueError("frames are connected but no vae; connect the loader's VAE to encode them")
        check_size(frames.shape[2], frames.shape[1])
        return io.NodeOutput({"samples": vae.encode(frames)})


class SDVideoVAEDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SDVideoVAEDecode",
            display_name="Decode Video",
            category="SDVideo",
            description="Turns a latent video into frames.",
            search_aliases=["vae decode", "decode video", "latent to frames", "视频解码"],
            inputs=[
                io.Latent.Input("samples", tooltip="Latents of a video, as the sampler returns them."),
                io.Vae.Input("vae", tooltip="The model's autoencoder."),
            ],
            outputs=[io.Image.Output(tooltip="The frames, in order.")],
        )

    @classmethod
    def execute(cls, samples: dict, vae) -> io.NodeOutput:
        return io.NodeOutput(decode_latent(vae, samples["samples"]))

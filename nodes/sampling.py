"""DDIM sampler: denoises a latent video exactly as the Python API does."""

from __future__ import annotations

from comfy_api.latest import io

from .comfy_bridge.sampling import DDIMSettings, sample_latent


def denoise_input() -> io.Float.Input:
    return io.Float.Input(
        "denoise",
        default=1.0,
        min=0.0,
        max=1.0,
        step=0.01,
        tooltip="Video to video: share of the steps that run. Lower keeps more of the frames.",
    )


class SDVideoDDIMSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SDVideoDDIMSampler",
            display_name="DDIM Video Sampler",
            category="SDVideo",
            description="Samples a video by DDIM, with the timesteps these models were published with. "
            "The same seed gives the same video as the Python API. Stock samplers work as well.",
            search_aliases=["ksampler", "sample video", "ddim", "denoise", "video to video", "采样器", "视频生视频"],
            inputs=[
                io.Model.Input("model", tooltip="The model that denoises."),
                io.Conditioning.Input("positive", tooltip="What the video shows."),
                io.Conditioning.Input("negative", tooltip="What the video avoids; unused at cfg 1."),
                io.Latent.Input("latent", tooltip="Empty, or encoded frames for video to video."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 2,
                    control_after_generate=True,
                    tooltip="The same seed and settings give the same video.",
                ),
                io.Int.Input(
                    "steps",
                    default=50,
                    min=1,
                    max=999,
                    tooltip="Denoising steps. 50 is the published setting, 20 to 30 are often enough.",
                ),
                io.Float.Input(
                    "cfg",
                    default=9.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="How strictly the video follows the prompt. 1 ignores the negative prompt and is twice "
                    "as fast; 9 is the published setting, up to 17 in use.",
                ),
                io.Float.Input(
                    "eta",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Fresh noise at every step: 0 none (DDIM), 1 as much as DDPM.",
                ),
                denoise_input(),
            ],
            outputs=[io.Latent.Output(tooltip="The denoised latent video.")],
        )

    @classmethod
    def execute(cls, model, positive, negative, latent, **settings) -> io.NodeOutput:
        settings = DDIMSettings(**settings)
        return io.NodeOutput(sample_latent(model, positive, negative, latent, settings))

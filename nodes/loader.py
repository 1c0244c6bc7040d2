"""Model loader: a ModelScope directory as native MODEL, CLIP and VAE."""

from __future__ import annotations

from comfy_api.latest import io

from .comfy_bridge.encoders import check_parts, load_clip, load_vae
from .comfy_bridge.folders import model_directories, model_directory
from .comfy_bridge.model import load_model


class SDVideoModelScopeLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SDVideoModelScopeLoader",
            display_name="Load ModelScope Video Model",
            category="SDVideo",
            description="Loads a ModelScope text-to-video model from a folder in models/text2video. "
            "Its outputs work with the stock nodes: KSampler, CLIP Text Encode, VAE Decode, Load LoRA.",
            search_aliases=[
                "text to video",
                "text2video",
                "t2v",
                "zeroscope",
                "potat1",
                "animov",
                "modelscope",
            ],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=list(model_directories()),
                    tooltip="Folder in models/text2video that holds configuration.json and the weights; demo, a "
                    "small model of moving shapes, comes with SDVideo. Later releases of the ModelScope weights are "
                    "licensed for non-commercial use only.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The 3-D UNet; any sampler takes it."),
                io.Clip.Output(tooltip="The OpenCLIP text encoder."),
                io.Vae.Output(tooltip="The autoencoder between frames and latents."),
            ],
        )

    @classmethod
    def execute(cls, model: str) -> io.NodeOutput:
        directory = model_directory(model)
        check_parts(directory)
        return io.NodeOutput(
            load_model(directory),
            load_clip(directory),
            load_vae(directory),
        )

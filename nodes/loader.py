"""Model loader: a model of any known layout as native MODEL, CLIP and VAE."""

from __future__ import annotations

from comfy_api.latest import io

from .comfy_bridge.encoders import load_encoders
from .comfy_bridge.folders import OWN, check_names, model_directories, model_directory, part_names, part_path
from .comfy_bridge.model import load_model, model_summary


class SDVideoModelScopeLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        models = list(model_directories())
        return io.Schema(
            node_id="SDVideoModelScopeLoader",
            display_name="Load ModelScope Video Model",
            category="SDVideo",
            description="Loads a model of the ModelScope family from models/text2video, in the original layout, as a "
            "folder of diffusers, or as a UNet's file with CLIP and VAE from elsewhere. "
            "Its outputs work with the stock nodes: KSampler, CLIP Text Encode, VAE Decode, Load LoRA.",
            search_aliases=[
                "text to video",
                "text2video",
                "t2v",
                "ModelScopeT2VLoader",
                "modelscope",
                "zeroscope",
                "potat1",
                "animov",
                "文生视频",
                "加载模型",
            ],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=models,
                    tooltip="Folder or file in models/text2video; demo, a small model of moving shapes, comes with "
                    "SDVideo. Later releases of the ModelScope weights are licensed for non-commercial use only.",
                ),
                _part_input(
                    "vae",
                    models,
                    "Where the autoencoder comes from, for models without one: another model, a file in "
                    "models/vae, or any Stable Diffusion 1 or 2 checkpoint. One of Stable Diffusion XL does not fit.",
                ),
                _part_input(
                    "clip",
                    models,
                    "Where the text encoder comes from, for models without one: another model, OpenCLIP ViT-H-14 in "
                    "models/text_encoders, or any Stable Diffusion 2 checkpoint. Some models come with a retrained "
                    "one; it is theirs alone.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The 3-D UNet; any sampler takes it."),
                io.Clip.Output(tooltip="The OpenCLIP text encoder."),
                io.Vae.Output(tooltip="The autoencoder between frames and latents."),
                io.String.Output(
                    "info",
                    display_name="info",
                    tooltip="Which model it is, what it was trained on, and settings to begin with.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, model: str | None, vae: str | None = OWN, clip: str | None = OWN) -> bool | str:
        return check_names(model, vae=vae, clip=clip)

    @classmethod
    def execute(cls, model: str, vae: str = OWN, clip: str = OWN) -> io.NodeOutput:
        path = model_directory(model)
        encoders = load_encoders(path, part_path(clip, "clip", path), part_path(vae, "vae", path))
        return io.NodeOutput(load_model(path), *encoders, model_summary(path))


def _part_input(name: str, models: list[str], tooltip: str) -> io.Input:
    return io.Combo.Input(name, options=part_names(name, models), default=OWN, optional=True, tooltip=tooltip)

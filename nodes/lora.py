"""LoRA loader: LoRAs of every format this family has, on MODEL and CLIP."""

from __future__ import annotations

from comfy_api.latest import io

from .comfy_bridge.lora import apply_lora, lora_names


class SDVideoLoRALoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SDVideoLoRALoader",
            display_name="Load Video LoRA",
            category="SDVideo",
            description="Applies a LoRA to a ModelScope video model, in any format that LoRAs for it come in. "
            "The output info and ComfyUI's console tell which layers were applied and what of the file was not used.",
            search_aliases=[
                "lora",
                "stable_lora",
                "motiondirector",
                "mcm",
                "t2v-turbo",
                "peft",
                "cloneofsimo",
                "加载LoRA",
            ],
            inputs=[
                io.Model.Input("model", tooltip="A model of Load ModelScope Video Model, with LoRAs or without."),
                io.Combo.Input(
                    "lora_name",
                    options=lora_names(),
                    tooltip="File in models/loras: kohya, PEFT, diffusers, stable_lora, webui or cloneofsimo format; "
                    "demo_few_steps comes with SDVideo, to try few-step LoRAs with the model demo.",
                ),
                _strength("strength_model", "How strongly the LoRA changes the video model. 0 leaves it as it is."),
                _strength("strength_clip", "The same for the text encoder; many LoRAs have no part for it."),
                io.Clip.Input("clip", optional=True, tooltip="The text encoder; without it its part is not applied."),
            ],
            outputs=[
                io.Model.Output(tooltip="The model with the LoRA."),
                io.Clip.Output(tooltip="The text encoder with the LoRA."),
                io.String.Output(
                    "info",
                    display_name="info",
                    tooltip="Which layers were applied, what of the file was not used, and how to sample with it.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model, lora_name, strength_model, strength_clip, clip=None) -> io.NodeOutput:
        return io.NodeOutput(*apply_lora(model, clip, lora_name, strength_model, strength_clip))


def _strength(name: str, tooltip: str) -> io.Input:
    return io.Float.Input(name, default=1.0, min=-100.0, max=100.0, step=0.01, tooltip=tooltip)

"""Text encoding: a prompt and a negative prompt in one node."""

from __future__ import annotations

from comfy_api.latest import io

from .comfy_bridge.encoders import encode_text


class SDVideoTextEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SDVideoTextEncode",
            display_name="Encode Video Prompt",
            category="SDVideo",
            description="Turns a prompt and a negative prompt into conditioning.",
            search_aliases=["prompt", "clip text encode", "conditioning", "negative prompt", "提示词", "文本编码"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder of the model."),
                io.String.Input(
                    "positive",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    tooltip="What the video shows. (word:1.2) raises the weight of a word.",
                ),
                io.String.Input(
                    "negative",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    tooltip="What the video avoids. It has no effect at cfg 1.",
                ),
            ],
            outputs=[
                io.Conditioning.Output("positive", display_name="positive", tooltip="Conditioning of the prompt."),
                io.Conditioning.Output(
                    "negative", display_name="negative", tooltip="Conditioning of the negative prompt."
                ),
            ],
        )

    @classmethod
    def execute(cls, clip, positive: str, negative: str) -> io.NodeOutput:
        return io.NodeOutput(encode_text(clip, positive), encode_text(clip, negative))

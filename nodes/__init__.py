"""ComfyUI nodes: the extension and its list of nodes."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .comfy_bridge.clips import register_clip_route
from .comfy_bridge.folders import register_model_folder
from .comfy_bridge.strips import register_strip_route
from .conditioning import SDVideoTextEncode
from .frames import SDVideoLoadFrameSequence, SDVideoSaveGIF
from .latents import SDVideoLatentInit, SDVideoVAEDecode
from .lcm import SDVideoLCMScheduler, SDVideoModelSamplingLCM
from .loader import SDVideoModelScopeLoader
from .lora import SDVideoLoRALoader
from .replacements import register_replacements
from .sampling import SDVideoDDIMSampler
from .training import SDVideoDataset, SDVideoTrainLoRA

NODES: list[type[io.ComfyNode]] = [
    SDVideoModelScopeLoader,
    SDVideoLoRALoader,
    SDVideoTextEncode,
    SDVideoLatentInit,
    SDVideoDDIMSampler,
    SDVideoModelSamplingLCM,
    SDVideoLCMScheduler,
    SDVideoVAEDecode,
    SDVideoLoadFrameSequence,
    SDVideoSaveGIF,
    SDVideoDataset,
    SDVideoTrainLoRA,
]


class SDVideoExtension(ComfyExtension):
    async def on_load(self) -> None:
        register_model_folder()
        register_strip_route()
        register_clip_route()
        await register_replacements()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES

"""Nodes called as functions, in a child set up as ComfyUI (`in_comfy`); to be imported there only."""

from comfy_api.latest import io
from sdvideo.nodes import NODES
from sdvideo.nodes.comfy_bridge.folders import register_model_folder

SETTINGS = {"seed": 0, "steps": 2, "cfg": 9.0, "eta": 0.0, "denoise": 1.0}

register_model_folder()
BY_ID = {node.GET_SCHEMA().node_id: node for node in NODES}


def call(node, *arguments, **inputs):
    """The outputs of a node of this pack, by its id, or of one of ComfyUI's, given its class."""
    node = BY_ID.get(node, node)
    output = node.execute(*arguments, **inputs)
    return output.args if isinstance(output, io.NodeOutput) else output


def load(model="demo", **parts):
    """MODEL, CLIP, VAE; parts are the inputs `vae` and `clip`."""
    return call("SDVideoModelScopeLoader", model, **parts)[:3]


def encode(clip, positive="a red circle", negative="blurry"):
    """Positive and negative conditioning."""
    return call("SDVideoTextEncode", clip, positive, negative)


def empty(width=64, height=64, num_frames=4):
    """An empty LATENT."""
    return call("SDVideoLatentInit", width, height, num_frames)[0]


def sample(model, conditioning, latent, **settings):
    """The samples (F, 4, h, w) of a run of DDIM."""
    return call("SDVideoDDIMSampler", model, *conditioning, latent, **SETTINGS | settings)[0]["samples"]


def use_dynamic_memory():
    """From here on models are loaded as on NVIDIA GPUs; buffers of pinned memory, which need one, stay empty."""
    import comfy.model_patcher
    import comfy_aimdo.host_buffer

    class HostBuffer:
        size = 0

        def __init__(self, *_):
            pass

        def truncate(self, *_, **__):
            pass

    class Dynamic(comfy.model_patcher.ModelPatcherDynamic):
        def __new__(cls, *_, **__):
            return object.__new__(cls)

    comfy_aimdo.host_buffer.HostBuffer = HostBuffer
    comfy.model_patcher.CoreModelPatcher = Dynamic

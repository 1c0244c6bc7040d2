"""SDVideo for ComfyUI: the ModelScope family of text-to-video models as native nodes."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """ComfyUI's way in; the nodes are imported here so that tools may import this file outside ComfyUI."""
    from .nodes import SDVideoExtension

    return SDVideoExtension()

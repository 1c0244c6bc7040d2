"""Replacements: nodes of other packs that old graphs hold, and ours that take their place."""

from __future__ import annotations

from comfy_api.latest import ComfyAPI, io

# The one node of ComfyUI_ModelScopeT2V (2024). Only what every graph with it holds is mapped, as ComfyUI fails on a
# mapped input that a graph lacks. Its strengths of the layers in time and its image model have no counterpart here.
MODELSCOPE_T2V_LOADER = io.NodeReplace(
    new_node_id="SDVideoModelScopeLoader",
    old_node_id="ModelScopeT2VLoader",
    old_widget_ids=["model_path", "enable_attn", "enable_conv", "temporal_attn_strength", "temporal_conv_strength"],
    input_mapping=[{"new_id": "model", "old_id": "model_path"}],
    output_mapping=[{"new_idx": 0, "old_idx": 0}],
)


async def register_replacements() -> None:
    """ComfyUI then offers them in the browser, and makes them in graphs that are queued without one."""
    await ComfyAPI().node_replacement.register(MODELSCOPE_T2V_LOADER)

"""A workflow file as the browser saves it (LiteGraph JSON) -> the API graph that POST /prompt takes."""

from collections.abc import Callable
from typing import Any

DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", DYNAMIC_COMBO)
UPLOADS = ("image_upload", "animated_image_upload", "video_upload")
NOTES = ("Note", "MarkdownNote")
MUTED, BYPASSED = 2, 4


def api_graph(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What the browser's Run button sends, for graphs of plain nodes: no subgraphs, no bypassed nodes."""
    nodes = [n for n in workflow["nodes"] if n["type"] not in NOTES and n.get("mode") != MUTED]
    ids = {node["id"] for node in nodes}
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"] if link[1] in ids}
    graph = {}
    for node in nodes:
        if node["type"] not in object_info or node.get("mode") == BYPASSED:
            raise ValueError(f"node {node['id']} ({node['type']}) is unknown to ComfyUI, virtual or bypassed")
        links = {i["name"]: sources[i["link"]] for i in node.get("inputs", []) if i.get("link") in sources}
        values = widget_values(node, object_info[node["type"]]["input"])
        graph[str(node["id"])] = {"class_type": node["type"], "inputs": {**values, **links}}
    return graph


def widget_values(node: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    """Values by input name. Linked inputs keep a widget, and so a value, which the link then replaces."""
    if "widgets_values_named" in node:
        return _take_values(inputs, node["widgets_values_named"].get)
    saved = list(node.get("widgets_values") or [])
    values = _take_values(inputs, lambda name: saved.pop(0) if saved else None)
    if any(value is not None for value in saved):
        about = f"node {node['id']} ({node['type']})"
        raise ValueError(f"{about}: the file has {saved} left after its schema's widgets {values}")
    return values


def _take_values(inputs: dict[str, Any], take: Callable[[str], Any], prefix: str = "") -> dict[str, Any]:
    """Asks `take` for each widget in the order of `widgets_values`; None means the schema's default."""
    values = {}
    for group in ("required", "optional"):
        specs = {name: (spec[0], spec[1] if spec[1:] else {}) for name, spec in inputs.get(group, {}).items()}
        for name, (kind, options) in specs.items():
            if (kind not in WIDGETS and not isinstance(kind, list)) or options.get("forceInput"):
                continue
            value = take(prefix + name)
            values[prefix + name] = options.get("default") if value is None else value
            if options.get("control_after_generate", kind == "INT" and name in ("seed", "noise_seed")):
                take("control_after_generate")
            if kind == DYNAMIC_COMBO:
                chosen = [o["inputs"] for o in options["options"] if o["key"] == value]
                values |= _take_values(chosen[0] if chosen else {}, take, f"{prefix}{name}.")
        if group == "required" and any(options.get(key) for _, options in specs.values() for key in UPLOADS):
            take("upload")
    return {name: value for name, value in values.items() if value is not None}

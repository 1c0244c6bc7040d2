"""The harness itself, proved with ComfyUI's own nodes; and that ComfyUI loads this pack without complaint."""

import gc
import io
import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.comfy.comfy_server import make_base_directory, start_comfyui


def link(node_id, output=0):
    return [str(node_id), output]


def empty_image(width=32, height=16, batch_size=1, color=0):
    inputs = {"width": width, "height": height, "batch_size": batch_size, "color": color}
    return {"class_type": "EmptyImage", "inputs": inputs}


def save_image(images, filename_prefix="frame"):
    return {"class_type": "SaveImage", "inputs": {"images": images, "filename_prefix": filename_prefix}}


def test_comfyui_loads_the_pack(server):
    assert "IMPORT FAILED" not in server.startup_log
    assert "Error while calling comfy_entrypoint" not in server.startup_log
    tracebacks = re.findall(r"Traceback \(most recent call last\):\n(?:[ \t].*\n)*.*", server.startup_log)
    pack = ("custom_nodes/sdvideo", str(Path(__file__).parents[2]))
    assert not [text for text in tracebacks if any(path in text for path in pack)]


def test_run_returns_files_that_view_serves(server):
    save = {"images": link(1), "filename_prefix": "clip", "fps": 8.0, "lossless": True, "quality": 80}
    graph = {
        "1": empty_image(batch_size=2, color=0xFF0000),
        "2": {"class_type": "RepeatImageBatch", "inputs": {"image": link(1), "amount": 2}},
        "3": {"class_type": "SaveAnimatedWEBP", "inputs": {**save, "images": link(2), "method": "default"}},
    }
    history = server.run(graph)
    output = history["outputs"]["3"]
    assert output["animated"] == [True]
    with Image.open(io.BytesIO(server.view(**output["images"][0]))) as image:
        assert (image.format, image.size) == ("WEBP", (32, 16))
    assert (server.base / "output" / output["images"][0]["filename"]).is_file()


def test_messages_are_those_of_the_latest_graph(server):
    server.run({"1": empty_image(color=1), "2": save_image(link(1))})
    server.run({"7": empty_image(color=2), "8": save_image(link(7))})
    executing = [m["data"]["node"] for m in server.messages if m["type"] == "executing"]
    assert executing == ["7", "8", None]
    assert "progress_state" in {m["type"] for m in server.messages}


def test_an_unknown_node_is_refused(server):
    with pytest.raises(RuntimeError, match="NoSuchNode"):
        server.run({"1": {"class_type": "NoSuchNode", "inputs": {}}})
    with pytest.raises(RuntimeError, match="NoSuchNode"):
        server.object_info("NoSuchNode")


def test_a_value_out_of_range_is_refused_with_its_node(server):
    with pytest.raises(RuntimeError, match=r"EmptyImage \(node 1\): .*width") as caught:
        server.run({"1": empty_image(width=0), "2": save_image(link(1))})
    assert caught.value.node_id == "1"


def test_one_invalid_output_among_valid_ones_is_an_error(server):
    good, bad = empty_image(), empty_image(height=0)
    graph = {"1": good, "2": save_image(link(1)), "3": bad, "4": save_image(link(3))}
    with pytest.raises(RuntimeError, match=r"\(node 3\).*height"):
        server.run(graph)


def test_a_failing_node_is_named_with_its_message(server):
    graph = {"1": empty_image(), "2": save_image(link(1), filename_prefix="../../frame")}
    with pytest.raises(RuntimeError, match=r"SaveImage \(node 2\) failed.*outside the output") as caught:
        server.run(graph)
    assert caught.value.node_id == "2"
    assert "get_save_image_path" in str(caught.value)


def slow_graph():
    """Blur after blur, each a fraction of a second: ComfyUI notices an interrupt between nodes."""
    graph = {"0": empty_image(width=256, height=256)}
    for index in range(1, 200):
        blur = {"image": link(index - 1), "blur_radius": 31, "sigma": 10.0}
        graph[str(index)] = {"class_type": "ImageBlur", "inputs": blur}
    return {**graph, "200": save_image(link(199))}


def test_interrupt_ends_a_running_graph(server):
    prompt_id = server.queue(slow_graph())
    server.wait_for(prompt_id, "executing", node="2")
    server.interrupt(prompt_id)
    with pytest.raises(RuntimeError, match=r"ImageBlur \(node \d+\) was interrupted"):
        server.wait(prompt_id)


def test_a_graph_that_takes_too_long_is_stopped(server):
    graph = slow_graph()
    graph["0"]["inputs"]["color"] = 0x00FF00
    with pytest.raises(RuntimeError, match=r"after 0\.5 s"):
        server.run(graph, timeout=0.5)
    server.run({"1": empty_image(color=3), "2": save_image(link(1))}, timeout=20)


# As the browser saves it: 1 -> 2 -> 3, a note, and a muted node 5 on a second branch.
WORKFLOW = {
    "nodes": [
        {"id": 1, "type": "EmptyImage", "inputs": [], "widgets_values": [24, 16, 1, 255]},
        {
            "id": 2,
            "type": "ImageAddNoise",
            "inputs": [{"name": "image", "link": 10}, {"name": "seed", "link": None}],
            "widgets_values": [7, "randomize", 0.25],
        },
        {
            "id": 3,
            "type": "SaveImage",
            "inputs": [{"name": "images", "link": 11}, {"name": "filename_prefix", "link": None}],
            "widgets_values_named": {"filename_prefix": "noisy"},
        },
        {"id": 4, "type": "Note", "widgets_values": ["hello"]},
        {"id": 5, "type": "PreviewImage", "mode": 2, "inputs": [{"name": "images", "link": 12}]},
    ],
    "links": [[10, 1, 0, 2, 0, "IMAGE"], [11, 2, 0, 3, 0, "IMAGE"], [12, 2, 0, 5, 0, "IMAGE"]],
}


def test_a_workflow_file_becomes_the_graph_that_the_browser_queues(server):
    graph = server.api_graph(WORKFLOW)
    assert graph == {
        "1": empty_image(width=24, height=16, color=255),
        "2": {"class_type": "ImageAddNoise", "inputs": {"image": link(1), "seed": 7, "strength": 0.25}},
        "3": save_image(link(2), filename_prefix="noisy"),
    }
    saved = server.run(graph, workflow=WORKFLOW)["outputs"]["3"]["images"][0]
    with Image.open(io.BytesIO(server.view(**saved))) as image:
        assert json.loads(image.info["workflow"]) == WORKFLOW
        assert json.loads(image.info["prompt"]) == graph


def test_the_choice_of_a_dynamic_combo_brings_its_own_inputs(server):
    resize = ["scale dimensions", 12, 8, "center", "area"]
    nodes = [
        {"id": 1, "type": "EmptyImage", "widgets_values": [24, 16, 1, 255]},
        {"id": 2, "type": "ResizeImageMaskNode", "widgets_values": resize},
        {"id": 3, "type": "SaveImage", "widgets_values": ["small"]},
    ]
    nodes[1]["inputs"] = [{"name": "input", "link": 1}]
    nodes[2]["inputs"] = [{"name": "images", "link": 2}]
    links = [[1, 1, 0, 2, 0, "IMAGE"], [2, 2, 0, 3, 0, "IMAGE"]]
    history = server.run(server.api_graph({"nodes": nodes, "links": links}))
    saved = history["outputs"]["3"]["images"][0]
    with Image.open(io.BytesIO(server.view(**saved))) as image:
        assert image.size == (12, 8)


def test_inputs_newer_than_a_workflow_file_take_their_defaults(server):
    node = {"id": 1, "type": "EmptyImage", "widgets_values": [24, 16]}
    graph = server.api_graph({"nodes": [node], "links": []})
    assert graph["1"] == empty_image(width=24, height=16)


def test_a_workflow_file_that_does_not_fit_the_schemas_is_an_error(server):
    node = {"id": 1, "type": "EmptyImage", "widgets_values": [24, 16, 1, 255, "more"]}
    with pytest.raises(ValueError, match=r"node 1 \(EmptyImage\): the file has \['more'\] left"):
        server.api_graph({"nodes": [node], "links": []})
    with pytest.raises(ValueError, match="unknown to ComfyUI"):
        server.api_graph({"nodes": [{"id": 1, "type": "PrimitiveNode"}], "links": []})


def settings_of_comfyui():
    import comfy.ldm.modules.attention as attention
    import comfy.model_management as management

    import nodes

    device = management.get_torch_device()
    dtype_functions = (management.unet_dtype, management.text_encoder_dtype, management.vae_dtype)
    return {
        "device": str(device),
        "dtypes": [str(dtype_of(device)) for dtype_of in dtype_functions],
        "attention": attention.optimized_attention.__name__,
        "nodes": nodes.__file__,
        "inference_mode": torch.is_inference_mode_enabled(),
    }


def test_a_child_has_the_settings_of_the_server(in_comfy, comfyui):
    settings = in_comfy(settings_of_comfyui)
    assert settings == {
        "device": "cpu",
        "dtypes": ["torch.float32"] * 3,
        "attention": "attention_pytorch",
        "nodes": str(comfyui / "nodes.py"),
        "inference_mode": True,
    }


def latent_of_sd15(latent, label):
    import comfy.latent_formats

    scaled = comfy.latent_formats.SD15().process_in(latent)
    return {"scaled": scaled, "first": scaled[:1], "label": label}


def test_tensors_reach_a_child_and_come_back(in_comfy):
    latent = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    result = in_comfy(latent_of_sd15, latent=latent, label="frames")
    torch.testing.assert_close(result["scaled"], latent * 0.18215)
    assert torch.equal(result["first"], result["scaled"][:1])
    assert result["label"] == "frames"


def change_comfy(value):
    import comfy.model_management as management

    before = getattr(management, "changed", None)
    management.changed = value
    return {"before": before}


def test_a_call_does_not_see_what_another_changed(in_comfy):
    assert [in_comfy(change_comfy, value=value) for value in (1, 2)] == [{"before": None}] * 2


def fail_in_comfy():
    raise ValueError("a reason worth reading")


def test_a_failing_child_says_why(in_comfy):
    with pytest.raises(RuntimeError, match="a reason worth reading"):
        in_comfy(fail_in_comfy)


def test_a_server_that_cannot_start_shows_its_log(comfyui, tmp_path):
    base = make_base_directory(tmp_path / "base")
    with (
        pytest.raises(RuntimeError, match=r"code 2 while starting\n(.*\n)*.*--no-such-flag"),
        start_comfyui(comfyui, base, "--no-such-flag"),
    ):
        pass


def test_a_server_that_is_too_slow_is_ended(comfyui, tmp_path):
    base = make_base_directory(tmp_path / "base")
    # A process left behind would fail this test too: Popen warns of one when it is collected.
    with pytest.raises(RuntimeError, match="not ready"), start_comfyui(comfyui, base, patience=0.5):
        pass
    gc.collect()

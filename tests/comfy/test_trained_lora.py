"""A LoRA trained in ComfyUI: it acts in the graph as in Python, and is the one that clips encoded anew train."""

import json

import pytest
import torch
from safetensors import safe_open

from sdvideo_core import SDVideo
from sdvideo_core.checkpoint import load_unet
from sdvideo_core.lora import LoRA, kohya_name, target_layers
from tests.comfy.training_inputs import NUM_FRAMES, SETTINGS, SIZE

SEED, PROMPT = 3, "a red circle moving left"
GRAPH_PROMPT, WORKFLOW = {"1": {"class_type": "SDVideoTrainLoRA"}}, {"nodes": []}


def train_from_clips(model, clips):
    """A LoRA trained as the node does, outside ComfyUI and with every clip encoded anew for every batch."""
    import tempfile

    from safetensors.torch import load
    from sdvideo.sdvideo_core import SDVideo as Model
    from sdvideo.sdvideo_core.training import SDVideoTrainer

    with tempfile.TemporaryDirectory() as folder, torch.inference_mode(False), torch.enable_grad():
        settings = {name: value for name, value in SETTINGS.items() if name != "batch_size"}
        data = clips.loader(SETTINGS["batch_size"])
        trainer = SDVideoTrainer(Model(model, amp=False), data, folder, save_states=False, **settings)
        return load(trainer.train(steps=3, bar=False).read_bytes())


def train_in_comfy(graph, workflow, path):
    """Frames of the base and of both ways to the trained LoRA, and all that the nodes return."""
    from types import SimpleNamespace

    import comfy.model_management as management
    import folder_paths
    from comfy_extras.nodes_train import LoraModelLoader

    import nodes
    from tests.comfy import called_nodes as calls

    calls.BY_ID["SDVideoTrainLoRA"].hidden = SimpleNamespace(prompt=graph, extra_pnginfo={"workflow": workflow})
    model, clip, vae = calls.load()
    management.load_models_gpu([model])
    dataset, num_clips = calls.call("SDVideoDataset", "example_clips", NUM_FRAMES, SIZE, SIZE, 1, False)
    train = {**SETTINGS, "steps": 3, "filename_prefix": "trained/lora"}
    lora, curve, name = calls.call("SDVideoTrainLoRA", "demo", dataset, **train)
    freed = model not in management.loaded_models()
    half = {**train, "steps": 1, "mixed_precision": "bf16", "gradient_accumulation": 2, "train_only": "temporal"}
    temporal, _, second = calls.call("SDVideoTrainLoRA", "demo", dataset, **half)
    parts = {"vae": "demo", "clip": "demo"}
    from_parts, *_ = calls.call("SDVideoTrainLoRA", "alone/diffusion_pytorch_model.pth", dataset, **train, **parts)

    (by_weights,) = calls.call(LoraModelLoader, model, lora, 1.0)
    (by_file,) = nodes.LoraLoaderModelOnly().load_lora_model_only(model, name, 1.0)
    frames = {}
    for kind, each in {"base": model, "weights": by_weights, "file": by_file}.items():
        samples = calls.sample(each, calls.encode(clip, PROMPT, ""), calls.empty(SIZE, SIZE, NUM_FRAMES), seed=SEED)
        (frames[kind],) = calls.call("SDVideoVAEDecode", {"samples": samples}, vae)
    return {
        **frames,
        "curve": curve,
        "num_clips": num_clips,
        "freed": freed,
        "names": [name, second],
        "listed": folder_paths.get_filename_list("loras"),
        "inference": [torch.is_inference_mode_enabled(), any(value.is_inference() for value in lora.values())],
        "temporal": list(temporal),
        "finite": all(bool(value.isfinite().all()) for value in temporal.values()),
        **{f"lora {key}": value for key, value in lora.items()},
        **{f"parts {key}": value for key, value in from_parts.items()},
        **{f"clips {key}": value for key, value in train_from_clips(path, dataset).items()},
    }


@pytest.fixture(scope="module")
def trained(in_comfy, comfy_demo, example_clips, unet_alone):
    return in_comfy(train_in_comfy, graph=GRAPH_PROMPT, workflow=WORKFLOW, path=str(comfy_demo))


@pytest.fixture(scope="module")
def trained_file(trained, comfy_base):
    return comfy_base / "models" / "loras" / trained["names"][0]


def test_a_trained_lora_acts_in_the_graph_as_in_python(trained, trained_file, comfy_demo):
    model = SDVideo(comfy_demo, amp=False)
    settings = {"guidance_scale": 9.0, "timesteps": 2, "image_size": (SIZE, SIZE), "num_frames": NUM_FRAMES}
    with LoRA.from_file(model.unet, trained_file):
        attached = model(PROMPT, seed=SEED, **settings)[0].permute(1, 2, 3, 0)
    assert (trained["weights"] - attached).abs().max() <= 1e-4
    assert (trained["weights"] - trained["base"]).abs().max() > 0.02


def test_the_output_is_what_the_file_holds(trained, trained_file):
    # Both are the float16 numbers of the file, so nothing but the order of sums could differ.
    assert (trained["weights"] - trained["file"]).abs().max() <= 1e-6
    with safe_open(trained_file, "pt") as file:
        for key in file.keys():  # noqa: SIM118 - it is no dict
            assert torch.equal(file.get_tensor(key), trained[f"lora {key}"])
        metadata = file.metadata()
    assert (json.loads(metadata["prompt"]), json.loads(metadata["workflow"])) == (GRAPH_PROMPT, WORKFLOW)
    assert (metadata["ss_network_dim"], metadata["step"]) == ("4", "3")


@pytest.mark.parametrize("other", ["clips", "parts"])
def test_the_lora_is_that_of_clips_encoded_anew_and_of_a_unet_with_parts_from_elsewhere(trained, other):
    lora = {key: value for key, value in trained.items() if key.startswith("lora ")}
    assert lora
    assert not [key for key in lora if not torch.equal(lora[key], trained[key.replace("lora", other, 1)])]


def test_files_are_numbered_and_listed_as_the_node_says(trained):
    assert trained["names"] == ["trained/lora_00001_.safetensors", "trained/lora_00002_.safetensors"]
    assert set(trained["names"]) <= set(trained["listed"])


def test_the_loss_curve_is_an_image_with_colours(trained):
    curve = trained["curve"]
    assert curve.ndim == 4
    assert (curve.shape[0], curve.shape[3]) == (1, 3)
    assert (curve.min() >= 0, curve.max() <= 1, curve.dtype) == (True, True, torch.float32)
    assert (curve.max(dim=3).values - curve.min(dim=3).values).max() > 0.2


def test_half_precision_trains_the_layers_that_are_asked_for(trained, comfy_demo):
    layers = {kohya_name(path) for path in target_layers(load_unet(comfy_demo), "temporal")}
    assert {key.split(".")[0] for key in trained["temporal"]} == layers
    assert trained["finite"]


def test_inference_mode_is_left_for_training_only(trained):
    assert trained["inference"] == [True, False]


def test_other_models_make_room(trained):
    assert trained["freed"]
    assert trained["num_clips"] == 2


def metadata_in_comfy():
    from comfy.cli_args import args
    from sdvideo.nodes.comfy_bridge.folders import workflow_metadata

    whole = workflow_metadata({"1": {}}, {"workflow": {}})
    args.disable_metadata = True
    return {"whole": whole, "without": workflow_metadata({"1": {}}, {"workflow": {}})}


def test_metadata_can_be_left_out(in_comfy):
    assert in_comfy(metadata_in_comfy) == {"whole": {"prompt": '{"1": {}}', "workflow": "{}"}, "without": {}}

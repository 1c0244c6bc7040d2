"""LoRA files of every format, made with the libraries that define them where there are some.

Each maker writes a file or folder for the UNet of `small_lora` into a folder, and returns its path and what it adds to
the weights, in float64, by diffusers' names of the layers.
"""

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import loralib
import peft
import torch
from diffusers import UNet3DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from safetensors.torch import save_file
from torch import Tensor, nn

from sdvideo_core.key_maps import diffusers_modules
from tests.unit.small_lora import CONFIG, random

Made = tuple[Path, dict[str, Tensor]]

RANK = 3
# A layer of every kind.
LAYERS = (
    "conv_in",
    "time_embedding.linear_1",
    "transformer_in.proj_in",
    "down_blocks.0.resnets.0.conv1",
    "down_blocks.0.resnets.0.time_emb_proj",
    "down_blocks.0.temp_convs.0.conv2.3",
    "down_blocks.0.attentions.0.proj_out",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    "down_blocks.0.temp_attentions.0.transformer_blocks.0.attn1.to_out.0",
    "down_blocks.0.downsamplers.0.conv",
    "mid_block.temp_attentions.0.transformer_blocks.0.ff.net.0.proj",
    "up_blocks.0.resnets.0.conv_shortcut",
    "up_blocks.0.upsamplers.0.conv",
    "conv_out",
)
LEAKED = ("conv_in", "conv_out", "time_embedding.linear_1")  # names that stable_lora's converter leaves as they are
OURS = {theirs: ours for ours, theirs in diffusers_modules(CONFIG).items()}


def own_name(name: str) -> str:
    """The path in UNetSD of a layer that diffusers calls so."""
    module = name
    while module not in OURS:
        module = module.rpartition(".")[0]
    return OURS[module] + name.removeprefix(module)


def make_diffusers_unet(time_cond_proj_dim: int | None = None) -> UNet3DConditionModel:
    """With the shapes of UNetSD(CONFIG)."""
    torch.manual_seed(4)
    unet = UNet3DConditionModel(
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock3D", "CrossAttnDownBlock3D"),
        up_block_types=("CrossAttnUpBlock3D", "CrossAttnUpBlock3D"),
        layers_per_block=CONFIG.res_blocks,
        cross_attention_dim=CONFIG.context_dim,
        attention_head_dim=CONFIG.head_dim,
        time_cond_proj_dim=time_cond_proj_dim,
    )
    return unet.double().eval().requires_grad_(False)


UNET = make_diffusers_unet()


def shape_of(name: str) -> tuple[int, ...]:
    return tuple(UNET.get_submodule(name).weight.shape)


def factors(name: str, seed: int) -> tuple[Tensor, Tensor]:
    """Random down (rank, in, *kernel) and up (out, rank, 1, ...), in float64."""
    out, *rest = shape_of(name)
    return random(RANK, *rest, seed=seed), random(out, RANK, *(1 for _ in rest[1:]), seed=seed + 100)


def product(down: Tensor, up: Tensor) -> Tensor:
    return torch.einsum("or,r...->o...", up.flatten(1), down)


def kohya(folder: Path, alpha: float | None = 1.5) -> Made:
    """As mcm's trainer writes it: diffusers' names with underscores."""
    tensors, deltas = {}, {}
    for seed, name in enumerate(LAYERS):
        down, up = factors(name, seed)
        key = "lora_unet_" + name.replace(".", "_")
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        if alpha is not None:
            tensors[f"{key}.alpha"] = torch.tensor(alpha)
        deltas[name] = product(down, up) * (1 if alpha is None else alpha / RANK)
    save_file(tensors, folder / "pytorch_lora_weights.safetensors")
    return folder / "pytorch_lora_weights.safetensors", deltas


def kohya_without_alpha(folder: Path) -> Made:
    return kohya(folder, alpha=None)


def adapted(model: nn.Module, layers: tuple[str, ...], **options) -> peft.PeftModel:
    """peft's model, with random adapters."""
    options = {"target_modules": list(layers)} | options
    config = peft.LoraConfig(r=RANK, init_lora_weights=False, **options)
    torch.manual_seed(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # between peft and transformers
        return peft.get_peft_model(model, config).double()


def peft_deltas(model: nn.Module, layers: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: model.get_submodule(f"base_model.model.{name}").get_delta_weight("default") for name in layers}


def peft_folder(folder: Path) -> Made:
    patterns = {"rank_pattern": {"conv_in": 2}, "alpha_pattern": {"conv_in": 5, "attn2.to_k": 1}}
    model = adapted(make_diffusers_unet(), LAYERS, lora_alpha=7, **patterns)
    model.save_pretrained(folder)
    return folder, peft_deltas(model, LAYERS)


def peft_patterns(folder: Path) -> Made:
    """With regular expressions for names, and without lora_alpha, for which peft has a default."""
    options = {
        "target_modules": "|".join(map(re.escape, LAYERS)),
        "rank_pattern": {"^conv_.*": 2, r".*\.to_(k|out\.0)": 4},
        "alpha_pattern": {"^conv_in": 5, r"down_blocks\..*\.to_k": 2, "to_k": 1, r"conv\d": 4},
    }
    model = adapted(make_diffusers_unet(), LAYERS, **options)
    model.save_pretrained(folder)
    config = folder / "adapter_config.json"
    fields = json.loads(config.read_text())
    del fields["lora_alpha"]
    config.write_text(json.dumps(fields))
    return folder, peft_deltas(model, LAYERS)


def rank_stabilized_peft(folder: Path) -> Made:
    model = adapted(make_diffusers_unet(), LAYERS, lora_alpha=7, use_rslora=True)
    model.save_pretrained(folder)
    return folder / "adapter_model.safetensors", peft_deltas(model, LAYERS)


def diffusers(folder: Path, alpha: int = RANK) -> Made:
    model = adapted(make_diffusers_unet(), LAYERS, lora_alpha=alpha)
    config = model.peft_config["default"].to_dict() if alpha != RANK else None
    weights = {key.removeprefix("base_model.model."): w for key, w in peft.get_peft_model_state_dict(model).items()}
    StableDiffusionLoraLoaderMixin.save_lora_weights(
        folder, unet_lora_layers=weights, unet_lora_adapter_metadata=config
    )
    return folder / "pytorch_lora_weights.safetensors", peft_deltas(model, LAYERS)


def diffusers_with_alpha(folder: Path) -> Made:
    return diffusers(folder, alpha=8)


def old_diffusers(folder: Path) -> Made:
    """The names of diffusers before peft: processors of attention, and `lora` inside other layers."""
    tensors, deltas = {}, {}
    for seed, name in enumerate(LAYERS):
        down, up = factors(name, seed)
        key = f"unet.{name}.lora"
        if ".attn" in name:
            block, layer = name.removesuffix(".0").rsplit(".", 1)
            key = f"unet.{block}.processor.{layer}_lora"
        tensors |= {f"{key}.down.weight": down, f"{key}.up.weight": up}
        deltas[name] = product(down, up)
    torch.save(tensors, folder / "pytorch_lora_weights.bin")
    return folder / "pytorch_lora_weights.bin", deltas


def loralib_factors(name: str, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A, B, and the change of weight that loralib, or stable_lora with a kernel of (3, 1, 1), makes of them."""
    out, width, *kernel = shape_of(name)
    if len(kernel) == 3:
        a, b = random(3 * RANK, 3 * width, seed=seed), random(3 * out, 3 * RANK, seed=seed + 100)
        return a, b, (b @ a).view(out, width, 3, 3, 1).mean(dim=-2, keepdim=True)
    options = {"r": RANK, "lora_alpha": RANK}
    layer = loralib.Conv2d(width, out, kernel[0], **options) if kernel else loralib.Linear(width, out, **options)
    weight = getattr(layer, "conv", layer).weight
    layer.double()
    weight.data = torch.zeros(shape_of(name), dtype=torch.float64)
    layer.lora_A.data = random(*layer.lora_A.shape, seed=seed)
    layer.lora_B.data = random(*layer.lora_B.shape, seed=seed + 100)
    layer.eval()  # loralib merges then
    return layer.lora_A.data, layer.lora_B.data, weight.data


def stable_lora(folder: Path) -> Made:
    tensors, deltas = {}, {}
    for seed, name in enumerate(LAYERS):
        tensors[f"{name}.lora_A"], tensors[f"{name}.lora_B"], deltas[name] = loralib_factors(name, seed)
    save_file(tensors, folder / "5000_lora_text_to_video_unet.safetensors")
    return folder / "5000_lora_text_to_video_unet.safetensors", deltas


def webui(folder: Path) -> Made:
    """With what stable_lora's converter leaves behind: names of diffusers, and axes after projections."""
    tensors, deltas = {}, {}
    for seed, name in enumerate(LAYERS):
        a, b, deltas[name] = loralib_factors(name, seed)
        path = name if name in LEAKED else own_name(name)
        axes = (..., None) if "proj_" in name else ...
        tensors |= {f"{path}.lora_A": a[axes], f"{path}.lora_B": b[axes]}
    path = folder / "webui_5000_lora_text_to_video.safetensors"
    save_file(tensors, path, {"stable_lora_text_to_video": "v1", "lora_name": "lora"})
    return path, deltas


def listed(folder: Path, names: list[str], ups_downs: list[tuple[Tensor, Tensor]], file: str = "5000_unet.pt") -> Made:
    """cloneofsimo's list, [up, down, up, down, ...]."""
    torch.save([tensor for down, up in ups_downs for tensor in (up, down)], folder / file)
    return folder / file, {name: product(*pair) for name, pair in zip(names, ups_downs, strict=True)}


def modules_inside(model: nn.Module, *classes: str, kinds: tuple[type[nn.Module], ...]) -> list[str]:
    """The layers of these kinds inside modules of these classes, in the order in which cloneofsimo's trainers go."""
    ancestors = [(path, module) for path, module in model.named_modules() if type(module).__name__ in classes]
    found = [
        f"{path}.{name}".lstrip(".")
        for path, ancestor in ancestors
        for name, module in ancestor.named_modules()
        if isinstance(module, kinds)
    ]
    return list(dict.fromkeys(found))


def positional(folder: Path) -> Made:
    names = modules_inside(UNET, "UNet3DConditionModel", kinds=(nn.Linear, nn.Conv2d, nn.Conv3d))
    return listed(folder, names, [factors(name, seed) for seed, name in enumerate(names)])


MAKERS: tuple[Callable[[Path], Made], ...] = (
    kohya,
    kohya_without_alpha,
    peft_folder,
    rank_stabilized_peft,
    diffusers,
    diffusers_with_alpha,
    old_diffusers,
    stable_lora,
    webui,
    positional,
    peft_patterns,
)
FORMATS = {  # of each maker
    "kohya": "kohya",
    "kohya_without_alpha": "kohya",
    "peft_folder": "peft",
    "rank_stabilized_peft": "peft",
    "diffusers": "diffusers",
    "diffusers_with_alpha": "diffusers",
    "old_diffusers": "diffusers",
    "stable_lora": "stable_lora",
    "webui": "webui",
    "positional": "positional",
    "peft_patterns": "peft",
}

"""Arrows: what each module or subpackage of sdvideo_core may import of the others; `test_architecture.py` checks it."""

NETWORKS = {"config", "attention", "blocks", "unet", "vae", "text_encoder"}
FILES = {"configuration", "state_dict", "key_maps", "diffusers_format", "layouts", "weights", "checkpoint"}
FILES |= {"families", "inspection", "convert", "diffusers_folder", "lora", "frames", "video_io", "whole_file"}
LORA = {"lora", "lora_export", "lora_files", "lora_formats", "lora_layers", "lora_weights"}
LIBRARY = NETWORKS | FILES | LORA | {"schedule", "guidance", "ddim", "lcm", "solvers", "samplers"}

# What each module or subpackage of sdvideo_core may import of sdvideo_core.
CORE_ARROWS: dict[str, set[str]] = {
    "whole_file": set(),
    "config": set(),
    "configuration": {"config"},
    "layers": set(),
    "attention": {"config"},
    "blocks": {"config", "attention"},
    "unet": {"config", "layers", "attention", "blocks"},
    "vae": {"config"},
    "text_encoder": {"config"},
    "schedule": set(),
    "guidance": {"unet", "schedule"},
    "ddim": {"guidance", "schedule"},
    "lcm": {"ddim", "guidance", "schedule"},
    "solvers": {"ddim", "guidance", "schedule"},
    "samplers": {"ddim", "lcm", "solvers", "guidance", "schedule"},
    "key_maps": {"config"},
    "state_dict": {"configuration"},
    "diffusers_format": {"config", "key_maps"},
    "layouts": {"config", "configuration", "state_dict"},
    "weights": {"config", "configuration", "diffusers_format", "layouts", "state_dict"},
    "checkpoint": {"configuration", "state_dict", "layouts", "weights"} | NETWORKS - {"blocks"},
    "families": set(),
    "inspection": {"checkpoint", "configuration", "families", "layouts", "lora_files", "state_dict"},
    "diffusers_folder": {"config", "configuration", "layouts", "vae"},
    "convert": {"checkpoint", "config", "configuration", "diffusers_folder", "diffusers_format", "layouts"}
    | {"state_dict", "whole_file"},
    "lora_layers": {"config", "key_maps", "text_encoder", "unet"},
    "lora_formats": {"configuration", "lora_layers"},
    "lora_files": {"configuration", "layouts", "lora_formats", "lora_layers", "state_dict"},
    "lora_export": {"lora_files", "lora_formats", "lora_layers", "state_dict", "whole_file"},
    "lora_weights": {"lora_files", "lora_formats", "lora_layers", "text_encoder", "unet"},
    "lora": {"lora_export", "lora_files", "lora_formats", "lora_layers", "state_dict", "unet"},
    "frames": set(),
    "video_io": {"frames", "whole_file"},
    "training": LIBRARY,
    "pipeline": LIBRARY,
    "demo": LIBRARY | {"training", "pipeline"},
    "cli_lora": LIBRARY | {"pipeline"},
    "cli_sampling": LIBRARY,
    "cli_training": LIBRARY | {"training", "pipeline"},
    "cli_files": LIBRARY | {"cli_training"},
    "cli": LIBRARY | {"demo", "training", "pipeline", "cli_files", "cli_lora", "cli_sampling", "cli_training"},
    "__main__": {"cli"},
    "__init__": LIBRARY | {"demo", "training", "pipeline"},
}

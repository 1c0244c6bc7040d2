"""Arrows: what each module or subpackage of sdvideo_core may import of the others; `test_architecture.py` checks it."""

NETWORKS = {"config", "attention", "blocks", "unet", "vae", "text_encoder"}
FILES = {"configuration", "part_config", "state_dict", "key_maps", "diffusers_format", "layouts", "weights"}
FILES |= {
    "checkpoint",
    "families",
    "inspection",
    "convert",
    "diffusers_folder",
    "lora",
    "frames",
    "video_io",
    "whole_file",
}
FILES |= {"arguments", "dithering", "gif", "playback", "sequence", "thumbnails", "video_metadata"}
LORA = {"lora", "lora_export", "lora_files", "lora_formats", "lora_layers", "lora_lists", "lora_others"}
LORA |= {"lora_peft", "lora_weights"}
LIBRARY = (
    NETWORKS | FILES | LORA | {"precision", "schedule", "guidance", "sampler", "ddim", "lcm", "solvers", "samplers"}
)

# What each module or subpackage of sdvideo_core may import of sdvideo_core.
CORE_ARROWS: dict[str, set[str]] = {
    "whole_file": set(),
    "arguments": set(),
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
    "sampler": {"guidance", "schedule"},
    "ddim": {"guidance", "sampler", "schedule"},
    "lcm": {"guidance", "sampler", "schedule"},
    "solvers": {"guidance", "sampler", "schedule"},
    "samplers": {"ddim", "lcm", "sampler", "solvers"},
    "key_maps": {"config"},
    "state_dict": {"configuration"},
    "diffusers_format": {"config", "key_maps", "state_dict"},
    "part_config": {"config", "configuration"},
    "layouts": {"config", "configuration", "part_config", "state_dict"},
    "weights": {"config", "configuration", "diffusers_format", "layouts", "state_dict"},
    "checkpoint": {"configuration", "part_config", "state_dict", "layouts", "weights"} | NETWORKS - {"blocks"},
    "families": {"checkpoint", "config", "layouts"},
    "inspection": {"checkpoint", "config", "configuration", "families", "layouts", "lora_files", "lora_layers"}
    | {"state_dict", "video_io", "video_metadata"},
    "diffusers_folder": {"config", "configuration", "layouts", "part_config", "vae"},
    "convert": {"checkpoint", "config", "configuration", "diffusers_folder", "diffusers_format", "layouts"}
    | {"part_config", "state_dict", "weights", "whole_file"},
    "lora_layers": {"config", "key_maps", "text_encoder", "unet"},
    "lora_lists": {"lora_layers"},
    "lora_others": {"configuration"},
    "lora_formats": {"configuration", "lora_layers"},
    "lora_peft": {"configuration"},
    "lora_files": {"config", "configuration", "layouts", "lora_formats", "lora_layers", "lora_lists", "lora_others"}
    | {"lora_peft", "state_dict"},
    "lora_export": {"configuration", "lora_files", "lora_formats", "lora_layers", "lora_peft"}
    | {"state_dict", "whole_file"},
    "lora_weights": {"key_maps", "lcm", "lora_files", "lora_formats", "lora_layers", "text_encoder", "unet"},
    "lora": {"layers", "lora_export", "lora_files", "lora_formats", "lora_layers", "state_dict", "unet"},
    "frames": {"arguments"},
    "playback": {"arguments"},
    "dithering": set(),
    "gif": {"dithering", "frames", "playback", "whole_file"},
    "sequence": {"arguments", "frames"},
    "thumbnails": {"sequence"},
    "video_metadata": {"sequence"},
    "precision": set(),
    "video_io": {"frames", "gif", "playback", "sequence", "whole_file"},
    "training": LIBRARY,
    "pipeline": LIBRARY,
    "demo": LIBRARY | {"training", "pipeline"},
    "cli_lora": LIBRARY | {"pipeline"},
    "cli_sampling": LIBRARY | {"pipeline"},
    "cli_files": LIBRARY,
    "cli_training": LIBRARY | {"training", "pipeline", "cli_defaults", "cli_files"},
    "cli_defaults": LIBRARY,
    "cli_output": LIBRARY,
    "cli_messages": set(),
    "cli_demo": LIBRARY | {"demo", "pipeline", "cli_defaults", "cli_lora", "cli_output", "cli_sampling"},
    "cli": LIBRARY
    | {"training", "pipeline", "cli_defaults", "cli_demo", "cli_files", "cli_lora", "cli_messages", "cli_output"}
    | {"cli_sampling", "cli_training"},
    "__main__": {"cli"},
    "__init__": LIBRARY | {"demo", "training", "pipeline"},
}

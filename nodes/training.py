"""Training: clips with captions, and a LoRA that is trained on them."""

from __future__ import annotations

from comfy_api.latest import io

from .comfy_bridge.folders import (
    OWN,
    check_names,
    clips_folder,
    model_directories,
    part_names,
    stamp,
    workflow_metadata,
)

Dataset = io.Custom("SDVIDEO_DATASET")
LoraModel = io.Custom("LORA_MODEL")


class SDVideoDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SDVideoDataset",
            display_name="Load Video Dataset",
            category="SDVideo",
            description="Finds clips and their captions in a folder, to train on.",
            search_aliases=["dataset", "training data", "clips", "captions", "video folder", "数据集"],
            inputs=[
                io.String.Input(
                    "directory",
                    default="",
                    placeholder="folder in ComfyUI's input folder, or an absolute path",
                    tooltip="Folder of GIFs (0001.gif with 0001.txt), of videos (clip.mp4 with clip.txt), or of "
                    "pictures (frames/ID/*.png with text/ID.txt). The texts are the captions.",
                ),
                io.Int.Input(
                    "num_frames",
                    default=16,
                    min=1,
                    max=1024,
                    tooltip="Frames of each clip. Shorter clips play forwards and backwards in turn.",
                ),
                io.Int.Input(
                    "width",
                    default=256,
                    min=64,
                    max=2048,
                    step=8,
                    tooltip="Frames are scaled to cover width x height, then cropped around the centre. Best what "
                    "the model was trained on: ModelScope 256, ZeroScope 576, the demo model 96.",
                ),
                io.Int.Input("height", default=256, min=64, max=2048, step=8, tooltip="See width. ZeroScope 320."),
                io.Int.Input("stride", default=1, min=1, max=1000, tooltip="Take every n-th frame."),
                io.Boolean.Input(
                    "skip_bad",
                    default=False,
                    tooltip="Leave out clips that cannot be read or have no caption, instead of an error. All clips "
                    "are then decoded at once, which takes time.",
                ),
            ],
            outputs=[
                Dataset.Output("dataset", display_name="dataset", tooltip="Clips for Train Video LoRA."),
                io.Int.Output("num_clips", display_name="num_clips", tooltip="How many clips there are."),
            ],
        )

    @classmethod
    def validate_inputs(cls, directory: str | None) -> bool | str:
        if directory is None:  # it comes through a link, and is checked when it is there
            return True
        try:
            return clips_folder(directory).is_dir()
        except (OSError, ValueError) as error:
            return str(error)

    @classmethod
    def fingerprint_inputs(cls, directory: str | None, **_) -> list | float:
        return float("nan") if directory is None else stamp(clips_folder(directory))  # NaN: run every time

    @classmethod
    def execute(cls, directory, num_frames, width, height, stride, skip_bad) -> io.NodeOutput:
        # Imported here and below, so that ComfyUI starts without training's libraries, or with them missing.
        from .comfy_bridge.training import open_clips

        clips = open_clips(directory, num_frames, (width, height), stride, skip_bad)
        return io.NodeOutput(clips, len(clips.dataset))


class SDVideoTrainLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SDVideoTrainLoRA",
            display_name="Train Video LoRA",
            category="SDVideo",
            description="Trains a LoRA of a video model on clips and saves it in models/loras. "
            "Its lora output goes into Load LoRA Model at once; later, Load LoRA finds the file.",
            search_aliases=["finetune", "fine-tune", "training", "lora trainer", "训练"],
            inputs=[*_sources(), *_optimization(), *_precision(), *_result(), *_parts()],
            outputs=[
                LoraModel.Output("lora", display_name="lora", tooltip="The LoRA, for Load LoRA Model."),
                io.Image.Output("loss_curve", display_name="loss_curve", tooltip="The loss of each step as a plot."),
                io.String.Output("lora_name", display_name="lora_name", tooltip="Its name in the list of Load LoRA."),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, model: str | None, vae: str | None = OWN, clip: str | None = OWN) -> bool | str:
        return check_names(model, vae=vae, clip=clip)

    @classmethod
    def execute(cls, model, dataset, steps, filename_prefix, **settings) -> io.NodeOutput:
        from .comfy_bridge.training import train_lora

        metadata = workflow_metadata(cls.hidden.prompt, cls.hidden.extra_pnginfo)
        trained = train_lora(model, dataset, steps, filename_prefix, metadata, **settings)
        return io.NodeOutput(trained.weights, trained.loss_curve, trained.name)


# Apart from model, dataset, steps, batch_size, filename_prefix, vae and clip, each is an argument of SDVideoTrainer.


def _sources() -> list[io.Input]:
    return [
        io.Combo.Input(
            "model",
            options=list(model_directories()),
            tooltip="Folder or file in models/text2video, as in Load ModelScope Video Model. Training loads it anew, "
            "because the weights that ComfyUI holds for sampling cannot be trained on.",
        ),
        Dataset.Input("dataset", tooltip="Clips of Load Video Dataset."),
    ]


def _optimization() -> list[io.Input]:
    return [
        io.Int.Input(
            "steps",
            default=500,
            min=1,
            max=100000,
            tooltip="Optimizer steps. A style takes some hundred to a few thousand.",
        ),
        io.Int.Input("lora_rank", default=8, min=1, max=128, tooltip="Width of the LoRA: more can hold more."),
        io.Float.Input(
            "lr",
            default=1e-4,
            min=1e-6,
            max=1.0,
            step=1e-6,
            tooltip="Learning rate. Lower it where the loss rises or becomes NaN.",
        ),
        io.Int.Input("batch_size", default=1, min=1, max=64, tooltip="Clips in one pass; each takes memory."),
        io.Int.Input(
            "gradient_accumulation",
            default=1,
            min=1,
            max=1024,
            tooltip="Passes of one step: as a larger batch, without its memory.",
        ),
        io.Combo.Input(
            "train_only",
            options=["all", "temporal"],
            default="all",
            tooltip="temporal trains only the layers that mix frames: motion, not looks.",
        ),
    ]


def _precision() -> list[io.Input]:
    return [
        io.Combo.Input(
            "mixed_precision",
            options=["auto", "no", "bf16", "fp16"],
            default="auto",
            tooltip="no is float32. bf16 and fp16 take less memory and are faster on a GPU; fp16 is for GPUs "
            "without bf16, and not for a CPU. auto is the best of them for the device: no on a CPU.",
        ),
        io.Boolean.Input(
            "gradient_checkpointing",
            default=True,
            tooltip="Much less memory for more time, with the same result.",
        ),
    ]


def _result() -> list[io.Input]:
    return [
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**32 - 1,
            control_after_generate=False,
            tooltip="The same seed, clips and settings train the same LoRA.",
        ),
        io.String.Input(
            "filename_prefix",
            default="sdvideo/lora",
            tooltip="Start of the file's name in models/loras; may hold a subfolder and fields such as "
            "%year%-%month%-%day%.",
        ),
        io.String.Input(
            "sample_prompt",
            default="",
            optional=True,
            tooltip="Something to draw now and then while it trains; the clip plays in this node. Empty draws nothing.",
        ),
        io.Int.Input(
            "sample_every", default=100, min=1, max=100000, optional=True, tooltip="Steps between such clips."
        ),
    ]


def _parts() -> list[io.Input]:
    places = {
        "vae": "Where the autoencoder comes from, for models without one, as in Load ModelScope Video Model.",
        "clip": "Where the text encoder comes from, for models without one, as in Load ModelScope Video Model.",
    }
    models = list(model_directories())
    return [
        io.Combo.Input(part, options=part_names(part, models), default=OWN, optional=True, tooltip=tooltip)
        for part, tooltip in places.items()
    ]

"""Inputs of Train Video LoRA for a training that takes a second."""

SIZE, NUM_FRAMES = 64, 4
SETTINGS = {
    "lora_rank": 4,
    "lr": 5e-3,
    "batch_size": 2,
    "gradient_accumulation": 1,
    "train_only": "all",
    "mixed_precision": "no",
    "gradient_checkpointing": True,
    "seed": 0,
}

"""Training: datasets, the trainer and what it saves."""

from .cache import CachedDataset, collate_cached, encode_dataset
from .collate import collate_fn
from .datasets import FrameSequenceDataset, MiniTestSet, VideoFolderDataset, open_dataset
from .distillation import Distillation
from .trainer import SDVideoTrainer

__all__ = [
    "CachedDataset",
    "Distillation",
    "FrameSequenceDataset",
    "MiniTestSet",
    "SDVideoTrainer",
    "VideoFolderDataset",
    "collate_cached",
    "collate_fn",
    "encode_dataset",
    "open_dataset",
]

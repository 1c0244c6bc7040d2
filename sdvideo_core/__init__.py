"""SDVideo: the ModelScope family of text-to-video models in pure PyTorch."""

from .demo import demo_model
from .pipeline import SDVideo
from .video_io import load_sequence, save_gif, save_pngs
from .video_metadata import read_metadata

__all__ = ["SDVideo", "demo_model", "load_sequence", "read_metadata", "save_gif", "save_pngs"]

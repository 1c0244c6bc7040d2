"""SDVideo: the ModelScope family of text-to-video models in pure PyTorch."""

from .demo import demo_model
from .pipeline import SDVideo
from .video_io import load_sequence, save_gif, save_pngs

__all__ = ["SDVideo", "demo_model", "load_sequence", "save_gif", "save_pngs"]

"""SDVideo: the ModelScope family of text-to-video models in pure PyTorch."""

from .pipeline import SDVideo
from .video_io import load_sequence, save_gif, save_pngs

__all__ = ["SDVideo", "load_sequence", "save_gif", "save_pngs"]

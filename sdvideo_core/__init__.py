"""SDVideo: the ModelScope family of text-to-video models in pure PyTorch."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .demo import demo_model
    from .pipeline import SDVideo
    from .video_io import load_sequence, save_gif, save_pngs
    from .video_metadata import read_metadata

__all__ = ["SDVideo", "demo_model", "load_sequence", "read_metadata", "save_gif", "save_pngs"]


def __getattr__(name: str) -> Any:
    """What the package has, imported when it is asked for: torch takes seconds, and `sdvideo --help` needs none."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import demo, pipeline, video_io, video_metadata

    return next(vars(module)[name] for module in (demo, pipeline, video_io, video_metadata) if name in vars(module))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

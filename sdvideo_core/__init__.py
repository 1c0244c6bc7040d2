"""SDVideo: the ModelScope family of text-to-video models in pure PyTorch."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .demo import demo_model
    from .pipeline import SDVideo
    from .video_io import load_sequence, save_gif, save_pngs
    from .video_metadata import read_metadata

__all__ = ["SDVideo", "demo_model", "load_sequence", "read_metadata", "save_gif", "save_pngs"]


# Modules that `import sdvideo_core` alone gives, as the names above.
MODULES = ("demo", "pipeline", "video_io", "video_metadata")


def __getattr__(name: str) -> Any:
    """What the package has, imported when it is asked for: torch takes seconds, and `sdvideo --help` needs none."""
    if name not in (*__all__, *MODULES):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .demo import demo_model
    from .pipeline import SDVideo
    from .video_io import load_sequence, save_gif, save_pngs
    from .video_metadata import read_metadata

    found = (SDVideo, demo_model, load_sequence, read_metadata, save_gif, save_pngs)
    globals().update({each.__name__: each for each in found})
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *MODULES})

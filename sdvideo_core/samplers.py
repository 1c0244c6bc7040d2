"""Samplers by name."""

from __future__ import annotations

from .ddim import DDIM
from .lcm import LCM
from .sampler import Sampler
from .solvers import DPMSolver2M, UniPC

SAMPLERS: dict[str, type[Sampler]] = {"ddim": DDIM, "dpm++2m": DPMSolver2M, "unipc": UniPC, "lcm": LCM}


def find_sampler(sampler: str | Sampler, eta: float = 0.0) -> Sampler:
    """A sampler by its name in SAMPLERS, or as it is. eta: of DDIM, by its name; 0 with the others."""
    if sampler == "ddim":
        return DDIM(eta)
    if eta:
        raise ValueError(f"eta={eta} with sampler={sampler!r}; eta belongs to 'ddim', set it to 0 for the others")
    if not isinstance(sampler, str):
        return sampler
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler={sampler!r}; expected one of {', '.join(SAMPLERS)}")
    return SAMPLERS[sampler]()

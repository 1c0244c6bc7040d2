"""SDVideo: text to video and video to video with one ModelScope model, as the Python API."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from .arguments import NUMBER, SIZE, WHOLE, Kind, is_list, is_number, takes
from .attention import sdpa, xformers_attention
from .blocks import to_frames, to_video
from .checkpoint import check_parts, load_text_encoder, load_unet, load_vae
from .config import ModelConfig
from .families import family_of, far_from_training
from .frames import check_size, frames_to_video, images_to_frames
from .guidance import GuidanceSchedule, guidance_wrappers, guided_eps, scale_over_steps
from .layouts import check_complete, find_layout, names_of
from .lcm import LCM, guidance_embedding, misuses
from .lora_files import LoRAReport
from .lora_weights import LoRAWeights
from .playback import progress_bar
from .precision import FLOAT_TYPES, amp_dtype, warn_of_emulation
from .sampler import Sampler, draw_noise
from .samplers import SAMPLERS, find_sampler
from .schedule import NoiseSchedule

# Latent pixels of a video up to which both prompts run together, those of 24 frames of 576x320 (decision 39).
BATCHED = 24 * 72 * 40

TEXT = Kind(lambda value: isinstance(value, str), "one prompt (str); call the model once for each of several")
NEGATIVE = replace(TEXT, expected="one prompt (str), '' for none")
PICTURES = Kind(
    lambda value: is_list(value, lambda item: isinstance(item, Image.Image)),
    "a list of PIL images; load_sequence reads them from a folder, a GIF or a video, video_to_images from a tensor",
)
SAMPLER = Kind(
    lambda value: (
        isinstance(value, str)
        or (not isinstance(value, type) and all(hasattr(value, name) for name in ("timesteps", "sample")))
    ),
    f"one of {', '.join(SAMPLERS)}, or a Sampler such as LCM()",
)
SCALES = Kind(
    lambda value: callable(value) or is_list(value, is_number), "a list of numbers, such as (12, 4), or a function"
)
# What the arguments of a call may be, by their names.
KINDS = {
    "text": TEXT,
    "text_neg": NEGATIVE,
    "guidance_scale": NUMBER,
    "timesteps": WHOLE,
    "image_size": SIZE,
    "num_frames": WHOLE.or_none(),
    "initial_frames": PICTURES.or_none(),
    "t_start": WHOLE.or_none(),
    "eta": NUMBER,
    "seed": WHOLE.or_none(),
    "sampler": SAMPLER,
    "guidance_rescale": NUMBER,
    "guidance_schedule": SCALES.or_none(),
    "dynamic_thresholding": NUMBER.or_none(),
    "guidance_embed": NUMBER.or_none(),
}


class SDVideo:
    """A text-to-video model loaded from a folder or a file.

    model_path: a ModelScope directory, a folder of diffusers, or a file of a UNet's weights (docs/formats.md). dtype:
    precision of the weights, float32, float16 or bfloat16. amp: with float32 weights, run the networks in mixed
    precision (float16 on CUDA, bfloat16 on a CPU that computes in it); half-precision weights already run in their
    own. vae, text_encoder: another model, or a file, to take these from; needed where the model comes without. bar:
    show progress bars.
    """

    def __init__(
        self,
        model_path: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        amp: bool = True,
        vae: str | Path | None = None,
        text_encoder: str | Path | None = None,
        bar: bool = False,
    ):
        if dtype not in FLOAT_TYPES:
            raise ValueError(f"dtype={dtype}; expected one of {', '.join(map(str, FLOAT_TYPES))}")
        self.device, self.dtype, self.amp = _usable(device), dtype, amp
        warn_of_emulation(f"dtype={dtype}", dtype, self.device, "dtype=torch.float32", "dtype=torch.float16")
        layout = find_layout(model_path)
        named = {"vae": vae, "text encoder": text_encoder}
        places = {"unet": layout} | {part: find_layout(path) if path else layout for part, path in named.items()}
        check_complete(places)  # before gigabytes are read
        with progress_bar("Loading the UNet", "B", bar) as done:
            self.unet = load_unet(layout, dtype, self.device, done)
        self.family = family_of(names_of(layout), self.unet.config)  # of the known models; None where nothing tells it
        with progress_bar("Loading the autoencoder", "B", bar) as done:
            self.vae = load_vae(places["vae"], dtype, self.device, done)
        with progress_bar("Loading the text encoder", "B", bar) as done:
            self.text_encoder = load_text_encoder(places["text encoder"], dtype, self.device, done)
        self.config = layout.config or ModelConfig(unet=self.unet.config)
        check_parts(self.unet.config, self.vae.config, self.text_encoder.config, model_path)
        self.schedule = NoiseSchedule()
        self._loras: LoRAWeights | None = None

    def enable_xformers(self, enable: bool = True) -> SDVideo:
        """Uses xformers' attention where it runs; where it cannot, warns why and keeps torch's."""
        reason = _why_not_xformers(self.device, self.dtype) if enable else None
        if reason:
            warnings.warn(f"xformers is not used: {reason}; torch's attention is", stacklevel=2)
        self.unet.attention = xformers_attention if enable and not reason else sdpa
        return self

    def load_lora(self, path: str | Path, strength: float = 1.0) -> LoRAReport:
        """Lets a LoRA act beside those loaded before, and tells what of it is applied and what is not used.

        path: a file, or a folder of PEFT's or diffusers', in any format of docs/lora.md. strength: any number; 0 is
        the base model bit for bit. Raises FileNotFoundError, or CheckpointError (a ValueError), which says what the
        file is, where nothing of it is for this model.
        """
        NUMBER.check("strength", strength)
        self._loras = self._loras or LoRAWeights(self.unet, self.text_encoder)
        return self._loras.add(path, strength)

    def unload_lora(self) -> None:
        """Takes all LoRAs out; the base model is back bit for bit."""
        if self._loras:
            self._loras.remove()
        self._loras = None

    @property
    def lcm(self) -> LCM:
        """The sampler "lcm": as the first LoRA that says how, among those of `load_lora`, wants to be sampled."""
        return (self._loras and self._loras.lcm) or LCM()

    @torch.no_grad()
    @takes(KINDS)
    def __call__(  # noqa: PLR0913 - the options a user sets, as the README lists them
        self,
        text: str,
        text_neg: str = "",
        guidance_scale: float = 9.0,
        timesteps: int = 50,
        image_size: tuple[int, int] = (256, 256),
        num_frames: int | None = None,
        initial_frames: Sequence[Image.Image] | None = None,
        t_start: int | None = None,
        eta: float = 0.0,
        seed: int | None = None,
        bar: bool = False,
        sampler: str | Sampler = "ddim",
        guidance_rescale: float = 0.0,
        guidance_schedule: GuidanceSchedule | None = None,
        dynamic_thresholding: float | None = None,
        guidance_embed: float | None = None,
    ) -> Tensor:
        """A video (1, 3, F, H, W) in 0..1.

        text, text_neg: what to show and what to avoid. guidance_scale: 1 ignores text_neg and halves the work.
        timesteps: sampling steps, 1..999. image_size: (width, height) in pixels, multiples of 8; with initial_frames
        the video has their size instead. num_frames: length, by default that of initial_frames or of the videos the
        model was trained on. initial_frames: pictures of equal size to start from (video to video). t_start: how many
        of the steps to run then, round(timesteps * strength). eta: randomness of DDIM, 0..1. seed: the same seed
        gives the same video; None draws one. bar: show a progress bar. sampler: a name in `samplers.SAMPLERS` ("lcm" is
        `self.lcm`), or one with options of its own, such as `lcm.LCM(timestep_scaling=10)`. guidance_rescale:
        RescaleCFG, 0 (off) to 1. guidance_schedule: scales spread over the way from pure noise to the video, or a
        function of it, in place of guidance_scale (see `guidance.scale_over_steps`). dynamic_thresholding: percentile,
        such as 0.995. guidance_embed: the scale of a model distilled with an embedding of it (T2V-Turbo, 5 to 15),
        which is used with guidance_scale 1. Raises TypeError for a value of another kind, ValueError for one out of
        range.
        """
        method = find_sampler(sampler, eta) if sampler != "lcm" or eta else self.lcm
        wrappers = guidance_wrappers(self.schedule, guidance_rescale, dynamic_thresholding)
        scale = scale_over_steps(guidance_schedule) if guidance_schedule is not None else guidance_scale
        embedded = guidance_embedding(guidance_embed).to(self.device) if guidance_embed is not None else None
        num_frames = self._num_frames(num_frames, initial_frames)
        size = image_size if initial_frames is None else initial_frames[0].size
        if warning := far_from_training(self.family, *size, num_frames):
            warnings.warn(warning, stacklevel=4)
        first_t = method.timesteps(self.schedule, timesteps, t_start)[0]
        for warning in misuses(method, timesteps, scale, guidance_embed, self._is_guidance_embedded()):
            warnings.warn(warning, stacklevel=4)
        first, fresh = _generators(seed)
        if initial_frames is None:
            if t_start is not None:
                raise ValueError(f"t_start={t_start} needs initial_frames; without them all the steps run")
            check_size(*image_size)
            latents = draw_noise(self._latent_shape(image_size, num_frames), first).to(self.device)
        else:
            latents = self._noised(initial_frames[:num_frames], first, first_t, bar)
        with self._precision(), _progress("Sampling", t_start or timesteps, "step", bar) as done:
            context, context_neg = self.text_encoder([text, text_neg]).chunk(2)
            batched = latents[0, 0].numel() <= BATCHED
            eps_model = guided_eps(self.unet, context, context_neg, scale, batched, wrappers, embedded)
            steps = timesteps, t_start, fresh, lambda *_: done.update()
            latents = method.sample(eps_model, latents, self.schedule, *steps)
        return self.decode(latents, bar)

    def _noised(self, images: Sequence[Image.Image], generator: torch.Generator, timestep: int, bar: bool) -> Tensor:
        clean = self.encode(images, bar)
        return self.schedule.add_noise(clean, draw_noise(clean.shape, generator).to(self.device), timestep)

    @torch.no_grad()
    def encode(self, images: Sequence[Image.Image], bar: bool = False) -> Tensor:
        """Pictures of equal size -> latents (1, 4, F, h, w) in float32."""
        PICTURES.check("images", images)
        frames = images_to_frames(list(images))
        check_size(frames.shape[3], frames.shape[2])
        frames = frames.to(self.device, self.dtype)
        with _progress("Encoding", len(frames), "frame", bar) as done:
            latents = self.vae.encode(frames, progress=done.update)
        return to_video(latents.float(), (1, len(frames)))

    @torch.no_grad()
    def decode(self, latents: Tensor, bar: bool = False) -> Tensor:
        """Latents (1, 4, F, h, w) -> video (1, 3, F, H, W) in 0..1, float32 on the CPU."""
        self._check_finite(latents, "latents after sampling")
        latents = to_frames(latents).to(self.dtype)
        with _progress("Decoding", len(latents), "frame", bar) as done:
            frames = self.vae.decode(latents, progress=done.update)
        self._check_finite(frames, "decoded frames")
        return frames_to_video(frames.float().cpu())

    def _check_finite(self, values: Tensor, name: str) -> None:
        if not torch.isfinite(values).all():
            raise FloatingPointError(
                f"the {name} hold NaN or infinity, computed with dtype={self.dtype} and amp={self.amp}; "
                "use dtype=torch.float32 with amp=False, or a lower guidance_scale"
            )

    def _num_frames(self, num_frames: int | None, initial_frames: Sequence[Image.Image] | None) -> int:
        available = len(initial_frames) if initial_frames is not None else None
        if num_frames is None:
            trained = (self.family and self.family.num_frames) or self.config.max_frames
            num_frames = available if available is not None else trained
        if num_frames < 1:
            raise ValueError(f"num_frames={num_frames}; a video has at least 1 frame")
        if available is not None and num_frames > available:
            raise ValueError(f"num_frames={num_frames}, but initial_frames has {available}; lower num_frames")
        return num_frames

    def _latent_shape(self, image_size: tuple[int, int], num_frames: int) -> tuple[int, ...]:
        width, height = image_size
        return (1, self.config.unet.in_dim, num_frames, height // 8, width // 8)

    def _is_guidance_embedded(self) -> bool:
        layer = self.unet.cond_proj
        return layer is not None and any(bool(weight.any()) for weight in layer.parameters())

    def _precision(self) -> contextlib.AbstractContextManager[object]:
        kind, half = self.device.type, amp_dtype(self.device)
        wanted = self.amp and self.dtype is torch.float32 and half is not None
        # Weights that are kept in half as well spare a CPU their cast at every step, and would fill a GPU's memory.
        return torch.autocast(kind, half, enabled=wanted, cache_enabled=kind == "cpu")


def check_seed(seed: int | None) -> None:
    """Raises ValueError for what no generator takes; None draws one."""
    if seed is not None and not 0 <= seed < 2**64:
        raise ValueError(f"seed={seed}; it must be 0..{2**64 - 1}")


def _generators(seed: int | None) -> tuple[torch.Generator, torch.Generator]:
    """One for the first noise and one, seeded with the next number, for the noise that eta > 0 adds."""
    check_seed(seed)
    first = torch.Generator()
    seed = first.seed() if seed is None else seed
    return first.manual_seed(seed), torch.Generator().manual_seed((seed + 1) % 2**64)


def _usable(device: str | torch.device) -> torch.device:
    if str(device) == "cuda" and (rank := os.environ.get("LOCAL_RANK")):
        # As accelerate does; else all the processes that it starts would load onto the first GPU.
        device = f"cuda:{int(rank) % max(1, torch.cuda.device_count())}"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {str(device)!r} cannot be used here: {reason}; use 'cpu'") from error


def _why_not_xformers(device: torch.device, dtype: torch.dtype) -> str | None:
    try:
        probe = torch.zeros(1, 8, 64, device=device, dtype=dtype)
        xformers_attention(probe, probe, probe, heads=1)
    except ImportError as error:
        return f"it is not installed for this torch ({error})"
    except (NotImplementedError, RuntimeError, ValueError, OSError, AttributeError) as error:
        return f"it has no kernel for {dtype} on {device.type} ({str(error).splitlines()[0]})"
    return None


def _progress(what: str, total: int, unit: str, shown: bool) -> tqdm:
    return tqdm(total=total, desc=what, unit=unit, disable=not shown)

"""SDVideoTrainer: trains the UNet of a model, whole, in time only, or as a LoRA."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..whole_file import remove_partial, whole_file
from .batches import Batches, Model, samples_per_step
from .cache import fingerprint
from .distillation import ConsistencyLoss, Distillation, Teacher
from .ema import EMA
from .loss import DiffusionLoss, EpsNetwork
from .loss_plot import plot_loss
from .lr_schedule import LRSchedule
from .network import Network
from .processes import accelerator_for, adopt_state, optimizer_for
from .samples import save_samples
from .settings import check_counts, check_settings, settings_of_run
from .sharding import check_sharding, is_sharded, no_warning_of_views, use_plain_layout, whole
from .state import (
    Progress,
    check_newest,
    keep_only_trained,
    load_state,
    newest_state,
    remove_leftovers,
    save_state,
)

StepCallback = Callable[[int, int, float], object]  # (steps done, steps in all, loss); may raise to stop the run


@dataclass(eq=False)
class SDVideoTrainer:
    """Trains `model.unet`; train() runs it. The VAE and the text encoder stay as they are."""

    model: Model  # an SDVideo; with dtype float32, unless only a LoRA is trained
    dataloader: DataLoader[Any]  # batches {"pixel_values": (b, f, c, h, w) in -1..1, "text": list of b captions}
    output_dir: str | Path = "output"
    lr: float = 1e-4  # learning rate, after warm-up and before decay
    scale_lr: bool = False  # multiply lr by batch size, gradient_accumulation and the number of processes
    lr_warmup: int = 0  # steps of rising to lr
    lr_decay: int = 0  # last steps of the run, in which lr falls to lr_min
    lr_min: float = 0.0  # lowest learning rate
    epochs: int = 1  # times through the data, the last step's batches made full; unless train() is told the steps
    gradient_accumulation: int = 1  # batches of each process per step
    unconditional_ratio: float = 0.1  # share of captions replaced by "", which guidance relies on
    xformers: bool = False  # its attention, on CUDA
    load_state: str | Path | bool | None = None  # go on from this state; True: from the newest of the run, if any
    log_with: str | None = None  # "tensorboard", or another tracker that accelerate knows
    seed: int = 0  # the same seed, data and settings train the same weights
    preencoded_img: bool = False  # pixel_values are latents (b, f, 4, h, w), as `sdvideo cache` writes them
    preencoded_txt: bool = False  # text is embeddings (b, 77, D)
    adam8bit: bool = False  # bitsandbytes' AdamW
    gradient_checkpointing: bool = False  # less memory, more time, the same numbers
    mixed_precision: str = "no"  # "no", "bf16" or, on CUDA, "fp16"
    ema: float | None = None  # share of the running average kept at each step, such as 0.999; it is what is saved
    max_grad_norm: float | None = 1.0  # longer gradients are cut to this; None or 0: never
    noise_offset: float = 0.0  # see DiffusionLoss for these four
    min_snr_gamma: float | None = None
    snr_floor: float = 0.0
    start_noise: float = 0.0
    lora_rank: int | None = None  # train a LoRA of this rank in place of the weights
    lr_delay: int = 0  # first steps, at lr_min
    distillation: Distillation | None = None  # make that LoRA one for sampling in a few steps without guidance
    train_only: str = "all"  # or "temporal": only the layers that mix frames
    weight_decay: float = 1e-2  # AdamW's
    betas: tuple[float, float] = (0.9, 0.999)  # AdamW's
    compile: bool = False  # torch.compile: minutes to begin with, then faster; needs a C++ compiler on a CPU
    save_dtype: torch.dtype = torch.float16  # of the file of weights; states keep float32
    save_states: bool = True  # to resume from; each takes what is trained three times, four with ema, in float32
    before_pass: Callable[[], object] | None = None  # before each batch of a step and pass of a sample; may raise

    def __post_init__(self) -> None:
        self.output_dir = Path(self.output_dir)
        self.losses: list[float] = []  # of each step, after or during train()
        check_settings(self)

    def train(
        self,
        run_name: str = "vid",
        log_every: int = 10,
        save_every: int = 1000,
        steps: int | None = None,
        sample_every: int | None = None,
        sample_prompts: Sequence[str] = (),
        bar: bool = True,
        callback: StepCallback | None = None,
    ) -> Path:
        """Trains and returns the file of weights, output_dir/<run_name>_unet.safetensors or _lora.safetensors.

        steps: optimizer steps in all, with those of a resumed state; None is `epochs` times through the data.
        Every save_every steps, and at the end, the file of weights and the state to resume from are written; every
        sample_every steps a GIF of each of sample_prompts. At the end the loss plot is, too.
        """
        check_counts(steps=steps, log_every=log_every, save_every=save_every, sample_every=sample_every)
        run = _Run(self, run_name, steps, samples=bool(sample_every and sample_prompts))
        with run:
            self.losses = run.progress.losses
            for done in run.steps(bar, log_every):
                last = done == run.total_steps
                if done % save_every == 0 and not last:
                    run.save()
                if sample_every and sample_prompts and (last or done % sample_every == 0):
                    run.sample(sample_prompts)
                if callback:
                    callback(done, run.total_steps, self.losses[-1])
            return run.finish()


class _Run:
    """One call of train(): what accelerate prepared, and where the run is. As a context it leaves the model clean."""

    def __init__(self, trainer: SDVideoTrainer, name: str, steps: int | None, samples: bool):
        self.trainer, self.name, self.output = trainer, name, Path(trainer.output_dir)
        self.total_steps, self.samples = steps if steps is not None else 0, samples
        self.cleanup = contextlib.ExitStack()

    def __enter__(self) -> _Run:
        with contextlib.ExitStack() as stack:  # undoes what was done where a part of it fails
            self._prepare(stack)
            self.cleanup = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.cleanup.close()

    def _prepare(self, stack: contextlib.ExitStack) -> None:
        t = self.trainer
        self.accelerator = accelerator_for(t, self.output)
        stack.callback(self.accelerator.free_memory)
        check_sharding(t, self.accelerator, self.samples)
        if is_sharded(self.accelerator) or t.adam8bit:  # bitsandbytes lays weights out so at every step
            use_plain_layout(t.model.unet)
        self.network = Network(t.model.unet, t.lora_rank, t.train_only, t.seed)
        stack.callback(self.network.end)
        self.base = fingerprint(self.network.frozen(), t.model.vae.state_dict(), t.model.text_encoder.state_dict())
        rate = t.lr * (samples_per_step(t, self.accelerator) if t.scale_lr else 1)
        optimizer = optimizer_for(list(self.network.trainable().values()), rate, t)
        self.prepared, self.optimizer, loader = self.accelerator.prepare(self.network, optimizer, t.dataloader)
        self.ema = EMA(self.network.trainable(), t.ema) if t.ema is not None else None
        if is_sharded(self.accelerator):
            stack.enter_context(no_warning_of_views())
        else:
            keep_only_trained(self.accelerator, self.network)
        self.batches = Batches(t, loader, self.accelerator)
        stack.callback(self.batches.close)
        self.total_steps = self.total_steps or math.ceil(t.epochs * len(loader) / t.gradient_accumulation)
        self.rate = self._lr_schedule(rate)
        self.loss = self._make_loss()
        self.progress = self._resume()
        self.resumed_at = self.progress.step
        # A teacher that drops values out would say something else every time.
        self.network.begin(t.xformers, t.gradient_checkpointing, dropout=t.distillation is None)
        if t.log_with and not self.accelerator.log_with:
            raise ImportError(f"log_with={t.log_with!r} is not installed; pip install {t.log_with}")
        if t.log_with:
            self.accelerator.init_trackers(self.name)
            stack.callback(self.accelerator.end_training)

    def steps(self, bar: bool, log_every: int) -> Iterator[int]:
        """Takes the steps that are left; yields how many are done after each."""
        batch_size = samples_per_step(self.trainer, self.accelerator)
        first, start = self.progress.step, time.perf_counter()
        silent = not bar or not self.accelerator.is_main_process
        with tqdm(
            total=self.total_steps, initial=self.progress.step, desc="Training", unit="step", disable=silent
        ) as t:
            for step in range(self.progress.step, self.total_steps):
                rate = self.rate(step)
                self.progress.losses.append(self._step(step, rate))
                self.progress.step = step + 1
                t.update()
                if (step + 1) % log_every == 0 or step + 1 == self.total_steps:
                    loss = float(np.mean(self.progress.losses[-(step % log_every + 1) :]))  # since the last time
                    speed = batch_size * (step + 1 - first) / (time.perf_counter() - start)
                    t.set_postfix_str(f"loss {loss:.4f}, lr {rate:.2g}, {speed:.2f} samples/s")
                    self.accelerator.log({"loss": loss, "lr": rate, "samples_per_second": speed}, step=step + 1)
                yield step + 1

    def save(self, state: bool = True) -> None:
        """Writes the weights for use, then the state: a run that is killed in between resumes from the last one."""
        with self._averaged():
            weights: dict[str, Any] = self.accelerator.get_state_dict(self.prepared)  # gathered where they are split
            if self.accelerator.is_main_process:
                how = self.trainer.distillation.sampler.metadata() if self.trainer.distillation else {}
                self.network.save(weights, self.file, self.trainer.save_dtype, self.progress.step, how)
        if self.trainer.save_states and state:
            save_state(self.accelerator, self.states, self.progress, self.ema)

    def sample(self, prompts: Sequence[str]) -> None:
        """Writes a GIF of each prompt, drawn by the averaged weights where there are any."""
        if not self.accelerator.is_main_process:
            return
        folder = self.output / f"{self.name}_samples"
        sampling = self.trainer.distillation.sampling if self.trainer.distillation else None
        with self._averaged(), self.batches.encoders():
            t, size = self.trainer, self.batches.video_size
            save_samples(t.model, prompts, folder, self.progress.step, size, sampling, t.before_pass)

    def finish(self) -> Path:
        """Saves, also where a resumed run had no steps left, and plots."""
        self.save(state=self.progress.step != self.resumed_at)  # that one is there
        if self.accelerator.is_main_process and self.progress.losses:
            with whole_file(self.output / f"{self.name}_loss.png") as temporary:
                plot_loss(self.progress.losses, self.name).save(temporary, "PNG")
        return self.file

    @property
    def file(self) -> Path:
        kind = "unet" if self.trainer.lora_rank is None else "lora"
        return self.output / f"{self.name}_{kind}.safetensors"

    @property
    def states(self) -> Path:
        return self.output / f"{self.name}_states"

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        return self.ema.applied(self.network.trainable()) if self.ema else contextlib.nullcontext()

    def _step(self, step: int, rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        total, parts = 0.0, self.trainer.gradient_accumulation
        for part in range(parts):
            if self.trainer.before_pass:
                self.trainer.before_pass()
            latents, context, generator = self.batches.get(step * parts + part)
            sync = self.accelerator.no_sync(self.prepared) if part < parts - 1 else contextlib.nullcontext()
            with sync, self.batches.randomness(generator):
                loss = self.loss(latents, context, generator) / parts
                self.accelerator.backward(loss)
            total += float(cast(Tensor, self.accelerator.reduce(loss.detach(), "mean")))
        self._check_finite("loss", total, step, rate)
        norm = self.accelerator.clip_grad_norm_(self.prepared.parameters(), self.trainer.max_grad_norm or math.inf)
        if self.accelerator.scaler is None:  # which leaves out steps of gradients that are not finite
            self._check_finite("gradient's norm", float(whole(cast(Tensor, norm))), step, rate)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema:
            self.ema.update(self.network.trainable())
        return total

    def _check_finite(self, name: str, value: float, step: int, rate: float) -> None:
        if math.isfinite(value):
            return
        precision = self.trainer.mixed_precision
        resume = ", with which the run can be resumed" if self.trainer.save_states else ""
        other = ", or start a new run with mixed_precision=no" if precision != "no" else ""
        raise FloatingPointError(
            f"the {name} of step {step + 1} is {value} with lr={rate:.3g} and mixed_precision={precision}; "
            f"use a lower lr{resume}{other}"
        )

    def _make_loss(self) -> Callable[[Tensor, Tensor, torch.Generator], Tensor]:
        """(latents, context, generator of the batch) -> loss."""
        t, schedule = self.trainer, self.trainer.model.schedule
        if t.distillation is None:
            diffusion = DiffusionLoss(schedule, t.noise_offset, t.min_snr_gamma, t.snr_floor, t.start_noise)
            return lambda latents, context, generator: diffusion(self._network(context), latents, generator)
        consistency = ConsistencyLoss(schedule, t.distillation, t.start_noise)
        return lambda latents, context, generator: consistency(
            self._network(context), self._teacher(context), latents, generator
        )

    def _network(self, context: Tensor) -> EpsNetwork:
        return lambda x, timesteps: self.prepared(x, timesteps, context)

    def _teacher(self, context: Tensor) -> Teacher:
        empty = self.batches.empty.float().expand_as(context).contiguous()  # else torch.compile starts once more

        def teacher(x: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
            with self.network.without_lora():
                return self.prepared(x, timesteps, context), self.prepared(x, timesteps, empty)

        return teacher

    def _resume(self) -> Progress:
        t = self.trainer
        settings = settings_of_run(t, self.accelerator, self.base)
        state = newest_state(self.states) if t.load_state is True else t.load_state
        fused = self.optimizer.param_groups[0].get("fused")
        progress = load_state(self.accelerator, Path(state), settings, self.ema) if state else Progress(settings)
        adopt_state(self.optimizer, fused)
        for group in self.optimizer.param_groups:  # those of the state came with it
            group.update(weight_decay=t.weight_decay, betas=t.betas)
        if self.accelerator.is_main_process:
            remove_partial(self.file)
        if t.save_states:
            if self.accelerator.is_main_process:
                remove_leftovers(self.states)
            check_newest(self.states, progress.step)
        return progress

    def _lr_schedule(self, lr: float) -> LRSchedule:
        t = self.trainer
        hold = self.total_steps - t.lr_delay - t.lr_warmup - t.lr_decay
        if hold < 0:
            raise ValueError(
                f"lr_delay={t.lr_delay}, lr_warmup={t.lr_warmup} and lr_decay={t.lr_decay} are "
                f"{self.total_steps - hold} steps together, and the run has {self.total_steps}; shorten them"
            )
        return LRSchedule(lr, t.lr_delay, t.lr_warmup, hold if t.lr_decay else None, t.lr_decay, t.lr_min)

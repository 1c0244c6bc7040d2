"""LCM: few-step models (MCM, T2V-Turbo) with the stock `lcm` sampler."""

from __future__ import annotations

from comfy_api.latest import io

from .comfy_bridge.lcm import AUTO, lcm_sigmas, with_lcm_sampling
from .sampling import denoise_input

ORIGINAL_TIMESTEPS = (
    "Number of timesteps that the model was distilled at: 50 for MCM and T2V-Turbo. "
    "0 takes what the LoRA's file says, 50 where it says nothing."
)


class SDVideoModelSamplingLCM(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SDVideoModelSamplingLCM",
            display_name="LCM Video Model Sampling",
            category="SDVideo",
            description="Makes a model with a few-step LoRA (MCM, T2V-Turbo) sample in 4 to 8 steps: use the stock "
            "sampler lcm, the sigmas of LCM Video Scheduler and cfg 1.",
            search_aliases=["lcm", "mcm", "t2v-turbo", "few steps", "ModelSamplingDiscrete", "少步采样"],
            inputs=[
                io.Model.Input("model", tooltip="A model with a few-step LoRA."),
                io.Int.Input("original_timesteps", default=0, min=0, max=500, tooltip=ORIGINAL_TIMESTEPS),
                io.Float.Input(
                    "timestep_scaling",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.01,
                    tooltip="4 for MCM, 10 for T2V-Turbo and others; 0 takes what the LoRA's file says, or else 4. It "
                    "matters at the last few timesteps only, which 4 to 8 steps never visit.",
                ),
                io.Float.Input(
                    "guidance_embed",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    optional=True,
                    tooltip="For T2V-Turbo's LoRA: the guidance scale that it is told, 5 to 15, and 7.5 is usual. "
                    "0 tells it none, as is right for all others.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model, sampling as LCM.")],
        )

    @classmethod
    def execute(cls, model, original_timesteps, timestep_scaling, guidance_embed=0.0) -> io.NodeOutput:
        return io.NodeOutput(with_lcm_sampling(model, original_timesteps, timestep_scaling, guidance_embed))


class SDVideoLCMScheduler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SDVideoLCMScheduler",
            display_name="LCM Video Scheduler",
            category="SDVideo",
            description="The steps that few-step models (MCM, T2V-Turbo) were made for, as sigmas for the stock "
            "SamplerCustom with the sampler lcm.",
            search_aliases=["lcm", "sigmas", "mcm", "t2v-turbo", "few steps", "调度器"],
            inputs=[
                io.Int.Input(
                    "steps", default=4, min=1, max=500, tooltip="4 is usual, up to 8; at most original_timesteps."
                ),
                denoise_input(),
                io.Int.Input("original_timesteps", default=0, min=0, max=500, tooltip=ORIGINAL_TIMESTEPS),
                io.Combo.Input(
                    "grid",
                    options=[AUTO, "strided", "even"],
                    default=AUTO,
                    tooltip="auto takes what the LoRA's file says, or else strided. 4 strided steps are at "
                    "timesteps 999, 759, 519, 279, as T2V-Turbo takes them; "
                    "4 even ones at 999, 759, 499, 259, as diffusers' LCMScheduler, which MCM uses.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The model of LCM Video Model Sampling, whose settings then count where original_timesteps "
                    "is 0 or grid is auto.",
                ),
            ],
            outputs=[io.Sigmas.Output(tooltip="One noise level a step, and 0.")],
        )

    @classmethod
    def execute(cls, steps, denoise, original_timesteps, grid, model=None) -> io.NodeOutput:
        return io.NodeOutput(lcm_sigmas(steps, denoise, original_timesteps, grid, model))

"""Few-step LoRAs in ComfyUI are sampled as their files say, and as the Python API does it."""

import shutil

import pytest
import torch

from sdvideo_core.demo import FEW_STEPS_LORA
from sdvideo_core.lcm import LCM
from sdvideo_core.lora_export import write_kohya
from sdvideo_core.lora_formats import Pair
from sdvideo_core.schedule import NoiseSchedule

WIDTH, HEIGHT, NUM_FRAMES, STEPS, SEED = 72, 64, 5, 4, 7
POSITIVE = "a red circle moving left"
NAME, STRENGTH, EMBED = "few/steps.safetensors", 0.5, 7.5
SETTINGS = LCM(0.001, 20, "even")  # at the tiny scaling the boundary functions matter


def compute_in_comfy(name, strength, embed):
    """Videos with the LoRA, with and without what its file says; sigmas and timesteps; and what was logged."""
    import logging

    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import SamplerCustom

    from tests.comfy import called_nodes as calls

    logged = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: logged.append((record.levelname, record.getMessage()))
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.INFO)
    model, clip, vae = calls.load()
    pair, latent = calls.encode(clip, POSITIVE, ""), calls.empty(WIDTH, HEIGHT, NUM_FRAMES)

    def load(strong, base=model):
        return calls.call("SDVideoLoRALoader", base, name, strong, 1.0)[0].clone()

    def sample(loaded, steps=(0, 0.0), schedule=(0, "auto"), cfg=1.0, embed=0.0, link=True):
        (patched,) = calls.call("SDVideoModelSamplingLCM", loaded, *steps, guidance_embed=embed)
        (sigmas,) = calls.call("SDVideoLCMScheduler", 4, 1.0, *schedule, model=patched if link else None)
        sampler = comfy.samplers.sampler_object("lcm")
        custom = calls.call(SamplerCustom, patched, True, SEED, cfg, *pair, sampler, sigmas, latent)
        frames = calls.call("SDVideoVAEDecode", custom[0], vae)[0]
        model_sampling = patched.get_model_object("model_sampling")
        return frames, model_sampling.timestep(sigmas[:-1]).tolist(), sigmas, model_sampling.sigmas

    results = {"info": calls.call("SDVideoLoRALoader", model, name, 0.0, 1.0)[2]}
    results["said"], results["timesteps"], results["sigmas"], results["points"] = sample(load(strength))
    results["embedded"], *_ = sample(load(strength), embed=embed)
    results["twice"], *_ = sample(load(strength / 2, load(strength / 2)), embed=embed)
    results["strength 0"], results["default timesteps"], *_ = sample(load(0))
    _, results["chosen timesteps"], *_ = sample(load(strength), (10, 4.0), (0, "strided"))
    logged.append(("", "mistakes"))
    sample(load(strength), cfg=3.0, embed=embed, link=False)
    try:
        sample(model, embed=embed)
    except ValueError as error:
        results["no layer"] = str(error)
    return {**results, "logged": [line for line in logged if line[1].split(":")[0] in ("SDVideo", "mistakes")]}


def list_loras(name):
    from sdvideo.nodes.comfy_bridge.lora import lora_names, lora_path

    return {"names": lora_names(), "path": str(lora_path(name))}


def test_the_shipped_lora_is_listed_last_unless_there_is_one_of_its_name(in_comfy, file, comfy_base):
    shipped = FEW_STEPS_LORA.name
    found = in_comfy(list_loras, name=shipped)
    assert found["names"][-1] == shipped and NAME in found["names"]
    assert FEW_STEPS_LORA.samefile(found["path"])
    users = comfy_base / "models" / "loras" / shipped
    shutil.copyfile(file, users)
    found = in_comfy(list_loras, name=shipped)
    users.unlink()
    assert found["names"].count(shipped) == 1
    assert found["path"] == str(users)


@pytest.fixture(scope="module")
def file(comfy_base, api):
    """A LoRA as T2V-Turbo's, with the layer of an embedded guidance scale."""
    generator, path = torch.Generator().manual_seed(1), comfy_base / "models" / "loras" / NAME
    shapes = {"cond_proj": (32, 256), "input_blocks.1.1.transformer_blocks.0.attn1.to_q": (32, 32)}
    random = {path: [torch.randn(n, generator=generator) for n in shape] for path, shape in shapes.items()}
    pairs = {path: Pair(down[None], up[:, None], 1.0) for path, (up, down) in random.items()}
    write_kohya(pairs, path, torch.float32, SETTINGS.metadata())
    yield path
    shutil.rmtree(path.parent)


@pytest.fixture(scope="module")
def in_graph(in_comfy, comfy_demo, file):
    return in_comfy(compute_in_comfy, name=NAME, strength=STRENGTH, embed=EMBED)


def in_python(api, file, strength=STRENGTH, sampler=SETTINGS, **options):
    """The video as frames (F, H, W, 3)."""
    api.load_lora(file, strength)
    options |= {"guidance_scale": 1, "timesteps": STEPS, "num_frames": NUM_FRAMES, "seed": SEED}
    video = api(POSITIVE, image_size=(WIDTH, HEIGHT), sampler=sampler, **options)
    api.unload_lora()
    return video[0].permute(1, 2, 3, 0)


def assert_same_video(found, expected):
    # Else everything could be black or white, and equal for that reason.
    inner = (expected > 0.02) & (expected < 0.98)
    assert inner.float().mean() > 0.5
    assert (found - expected).abs().max() <= 1e-4


@pytest.mark.filterwarnings("ignore:this model was distilled with an embedded guidance scale")
def test_it_is_sampled_as_its_file_says(in_graph, api, file):
    assert_same_video(in_graph["said"], in_python(api, file))
    assert_same_video(in_graph["said"], in_python(api, file, sampler="lcm"))


def test_the_loader_says_how(in_graph):
    said = "to be sampled as LCM(timestep_scaling=0.001, original_steps=20, grid='even')"
    assert in_graph["info"].splitlines()[-1] == said


def test_at_20_points_node_and_core_agree(in_graph):
    schedule = NoiseSchedule()
    timesteps = SETTINGS.timesteps(schedule, STEPS)
    assert in_graph["timesteps"] == timesteps == [999, 749, 499, 249]
    expected = torch.tensor([*map(schedule.sigma, timesteps), 0.0])
    torch.testing.assert_close(in_graph["sigmas"], expected, rtol=1e-6, atol=0)
    points = torch.tensor([schedule.sigma(t) for t in range(49, 1000, 50)])
    torch.testing.assert_close(in_graph["points"], points, rtol=1e-6, atol=0)


def test_what_the_user_sets_counts_and_passes_on_to_the_scheduler(in_graph):
    assert in_graph["chosen timesteps"] == LCM(4.0, 10).timesteps(NoiseSchedule(), STEPS)
    assert in_graph["chosen timesteps"] != SETTINGS.timesteps(NoiseSchedule(), STEPS)


def test_at_strength_0_nothing_is_said(in_graph, api, file):
    assert in_graph["default timesteps"] == [999, 759, 519, 279]
    assert_same_video(in_graph["strength 0"], in_python(api, file, 0.0, LCM()))


def test_the_embedded_guidance_scale_acts_as_in_python(in_graph, api, file):
    expected = in_python(api, file, guidance_embed=EMBED)
    assert_same_video(in_graph["embedded"], expected)
    assert (in_graph["said"] - expected).abs().max() > 0.05


def test_the_layers_of_several_loras_add_up(in_graph):
    assert_same_video(in_graph["twice"], in_graph["embedded"])


def test_an_embedded_scale_without_a_layer_for_it_is_refused(in_graph):
    assert in_graph["no layer"] == (
        "guidance_embed is 7.5, but no LoRA of this model has the layer for it, cond_proj; set it to 0, or load "
        "T2V-Turbo's LoRA with Load Video LoRA"
    )


def test_what_was_chosen_is_logged_and_mistakes_are_warned_of(in_graph):
    logged = [tuple(line) for line in in_graph["logged"]]
    before, after = logged[: logged.index(("", "mistakes"))], logged[logged.index(("", "mistakes")) :]
    assert before[0] == ("INFO", "SDVideo: LCM with original_steps 20, timestep_scaling 0.001, as the model says")
    assert before[2] == ("INFO", "SDVideo: LCM with original_steps 20, grid even, as the model says")
    assert (
        before[1][0] == "WARNING" and "embedded guidance scale, as T2V-Turbo was, and runs without it" in before[1][1]
    )
    assert ("INFO", "SDVideo: LCM with original_steps 10, timestep_scaling 4.0, as set") in before
    assert ("INFO", "SDVideo: LCM with original_steps 50, timestep_scaling 4.0, by default") in before
    warned = [text.split(";")[0] for level, text in after if level == "WARNING"]
    assert warned == [
        "SDVideo: the sigmas are not of the 20 timesteps that LCM Video Model Sampling has",
        "SDVideo: cfg is 3",
    ]
    assert sum("sigmas" in text or "cfg" in text for _, text in before) == 0

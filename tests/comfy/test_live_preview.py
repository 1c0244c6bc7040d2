"""Live previews while a clip is sampled: its frames and the speed, for every sampler, off where users say so."""

import base64
import copy
import io

import numpy as np
import pytest
import torch
from PIL import Image

from sdvideo_core import SDVideo, demo_model
from sdvideo_core.demo.clips import Scene, draw_clip

NUM_FRAMES, WIDTH, HEIGHT, STEPS = 5, 80, 64, 3

GRAPH = {
    "loader": {"class_type": "SDVideoModelScopeLoader", "inputs": {"model": "demo"}},
    "text": {
        "class_type": "SDVideoTextEncode",
        "inputs": {"clip": ["loader", 1], "positive": "a red circle", "negative": ""},
    },
    "latent": {
        "class_type": "EmptyLatentImage",
        "inputs": {"width": WIDTH, "height": HEIGHT, "batch_size": NUM_FRAMES},
    },
    "sampler": {
        "class_type": "KSampler",
        "inputs": {
            "model": ["loader", 0],
            "positive": ["text", 0],
            "negative": ["text", 1],
            "latent_image": ["latent", 0],
            "seed": 0,
            "steps": STEPS,
            "cfg": 9.0,
            "sampler_name": "euler",
            "scheduler": "normal",
            "denoise": 1.0,
        },
    },
    "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sampler", 0], "vae": ["loader", 2]}},
    "show": {"class_type": "PreviewImage", "inputs": {"images": ["decode", 0]}},
}


def with_ddim(graph):
    graph = copy.deepcopy(graph)
    inputs = graph["sampler"]["inputs"]
    stock = {name: inputs.pop(name) for name in ("sampler_name", "scheduler", "latent_image")}
    graph["sampler"] = {
        "class_type": "SDVideoDDIMSampler",
        "inputs": {**inputs, "eta": 0.0, "latent": stock["latent_image"]},
    }
    return graph


def reports(server, graph, seed, **options):
    graph = copy.deepcopy(graph)
    graph["sampler"]["inputs"]["seed"] = seed
    server.wait(server.queue(graph, **options))
    return [message["data"] for message in server.messages if message["type"] == "sdvideo.sampling"]


def picture_of(sheet):
    return Image.open(io.BytesIO(base64.b64decode(sheet["image"].removeprefix("data:image/jpeg;base64,"))))


@pytest.mark.parametrize("sampler", ["stock", "ddim"])
def test_the_browser_gets_all_frames_and_the_speed(server, comfy_demo, sampler):
    first, *_ = reports(server, GRAPH if sampler == "stock" else with_ddim(GRAPH), seed=1)
    assert (first["node"], first["step"], first["steps"]) == ("sampler", 1, STEPS)
    assert first["seconds_left"] == pytest.approx((STEPS - 1) * first["seconds_per_step"])
    sheet = first["sheet"]
    assert {name: sheet[name] for name in ("frames", "fps", "columns", "width", "height")} == {
        "frames": NUM_FRAMES,
        "fps": 8,
        "columns": 3,
        "width": WIDTH // 8,
        "height": HEIGHT // 8,
    }
    assert picture_of(sheet).size == (3 * WIDTH // 8, 2 * HEIGHT // 8)


def test_no_frames_are_sent_where_previews_are_off(server, comfy_demo):
    first, *_ = reports(server, GRAPH, seed=2, previews="none")
    assert first["steps"] == STEPS
    assert "sheet" not in first


def frames_in_comfy(latents):
    import latent_preview
    import numpy as np
    import sdvideo.nodes.comfy_bridge.live_preview as live
    from comfy.cli_args import LatentPreviewMethod, args
    from comfy.latent_formats import SD15

    args.preview_method = LatentPreviewMethod.Latent2RGB
    stock = latent_preview.Latent2RGBPreviewer(SD15().latent_rgb_factors)
    frames = [np.asarray(stock.decode_latent_to_preview(latents[i : i + 1])) for i in range(len(latents))]
    long = live.latents_to_frames(torch.zeros(70, 4, 9, 200), SD15())
    five = torch.randn(5, 4, 1, 1, generator=torch.Generator().manual_seed(1)).expand(5, 4, 8, 8)
    return {
        "clip": live._clip(five, SD15())["sheet"],
        "frames": live.latents_to_frames(five, SD15()),
        "ours": live.latents_to_frames(latents, SD15()),
        "stock": torch.from_numpy(np.stack(frames)),
        "long": long,
        "sheet": live._clip(torch.zeros(70, 4, 8, 8), SD15())["sheet"],
    }


def test_each_frame_is_what_the_stock_preview_shows_of_the_first(in_comfy):
    found = in_comfy(frames_in_comfy, latents=torch.randn(3, 4, 6, 7, generator=torch.Generator().manual_seed(0)))
    assert found["ours"].shape == (3, 6, 7, 3)
    assert (found["ours"].int() - found["stock"].int()).abs().max() <= 1
    num_frames, height, width, _ = found["long"].shape
    assert (num_frames, width) == (24, 96)  # every third frame, 200 pixels made 96
    assert height == 4
    assert (found["sheet"]["frames"], found["sheet"]["fps"]) == (24, pytest.approx(8 / 3))  # as long as the clip is


def test_the_frames_of_a_preview_lie_row_by_row_in_one_picture(in_comfy):
    found = in_comfy(frames_in_comfy, latents=torch.zeros(1, 4, 6, 7))
    picture = np.asarray(picture_of(found["clip"])).astype(int)
    frames = found["frames"].numpy().astype(int)
    cells = [picture[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] for row in (0, 1) for column in (0, 1, 2)]
    for cell, frame in zip(cells[: len(frames)], frames, strict=True):
        assert abs(cell - frame).mean() < 12  # a JPEG's
        assert [abs(cell - other).mean() < 12 for other in frames].count(True) == 1
    assert cells[-1].max() < 12


def colors_in_comfy(latents, shipped, random):
    """What ComfyUI's previewer and ours show of latents: of the demo model, and of one that is not known."""
    import latent_preview
    import numpy as np
    from comfy.cli_args import LatentPreviewMethod, args
    from sdvideo.nodes.comfy_bridge.live_preview import latents_to_frames
    from sdvideo.nodes.comfy_bridge.model import load_model

    found = {}
    for name, path in (("demo", shipped), ("unknown", random)):
        latent_format = load_model(path).model.latent_format
        for method in ("Latent2RGB", "TAESD"):
            args.preview_method = LatentPreviewMethod[method]
            stock = latent_preview.get_previewer(torch.device("cpu"), latent_format)
            frames = [np.asarray(stock.decode_latent_to_preview(latents[i : i + 1])) for i in range(len(latents))]
            found[f"{name} {method}"] = torch.from_numpy(np.stack(frames))
        found[name] = latents_to_frames(latents, latent_format)
        found[f"decoder of {name}"] = latent_format.taesd_decoder_name
    return found


DRAWN = (("orange", "blue"), ("green", "black"), ("red", "white"), ("purple", "gray"))


@pytest.fixture(scope="module")
def drawn():
    """Latents of clips of the demo model, and the colours that its decoder gives each: (F, 12, 12, 3) in 0..255."""
    model, rng = SDVideo(demo_model(), amp=False), np.random.default_rng(0)
    clips = [draw_clip(Scene(color, "square", "right", on), rng, num_frames=2) for color, on in DRAWN]
    latents = model.encode([Image.fromarray(frame) for clip in clips for frame in clip])
    frames = model.decode(latents)[0].movedim(0, 3)
    return latents[0].transpose(0, 1).contiguous(), 255 * frames.unflatten(1, (12, 8)).unflatten(3, (12, 8)).mean(
        (2, 4)
    )


def test_previews_of_the_demo_model_have_its_colours(in_comfy, comfy_demo, drawn):
    latents, colors = drawn
    found = in_comfy(colors_in_comfy, latents=latents, shipped=str(demo_model()), random=str(comfy_demo))
    assert (found["decoder of demo"], found["decoder of unknown"]) == (None, "taesd_decoder")
    errors = {name: float((found[name] - colors).abs().mean()) for name in ("demo", "unknown")}
    assert errors["demo"] < 25
    assert errors["unknown"] > 3 * errors["demo"]  # Stable Diffusion's colours
    for channel in range(3):
        shown, wanted = found["demo"][..., channel].flatten(), colors[..., channel].flatten()
        assert np.corrcoef(shown, wanted)[0, 1] > 0.9
    for name in ("demo", "unknown"):
        assert (found[name].int() - found[f"{name} Latent2RGB"].int()).abs().max() <= 1
    assert torch.equal(found["demo TAESD"], found["demo Latent2RGB"])


def waits_in_comfy(computes_later=False):
    """When reports are sent, by a clock of ours: 0.2 s a step, the first of which takes 5 s more, 0.1 s a report.

    A device that computes later takes a step in no time, and its time only when it is waited for.
    """
    import sdvideo.nodes.comfy_bridge.browser as browser

    now, ready, sent = 100.0, 105.0, []

    def send(_event, report):
        nonlocal now
        now += 0.1
        sent.append(report)

    def synchronize():
        nonlocal now
        now = max(now, ready)

    browser.send, browser.time.monotonic = send, lambda: now
    browser.comfy.model_management.synchronize = synchronize
    reports = browser.Reports("event")
    for done in range(1, 61):
        ready = max(now, ready) + 0.2
        if not computes_later or done % 10 == 0:  # one that does is waited for now and then, whatever is reported
            synchronize()
        reports.step(done, 60, dict)
    return {"sent": sent, "seconds": now - 105}


@pytest.mark.parametrize("computes_later", [False, True])
def test_reports_wait_until_they_cost_under_3_percent_and_the_last_step_is_always_one(in_comfy, computes_later):
    found = in_comfy(waits_in_comfy, computes_later=computes_later)
    steps = [report["step"] for report in found["sent"]]
    assert steps[0] == 1 and steps[-1] == 60 and len(steps) > 3
    assert 0.1 * (len(steps) - 2) <= 0.03 * found["seconds"]


@pytest.mark.parametrize("computes_later", [False, True])
def test_the_speed_is_that_of_the_steps_after_the_first(in_comfy, computes_later):
    first, second, *_ = in_comfy(waits_in_comfy, computes_later=computes_later)["sent"]
    assert first["seconds_per_step"] == pytest.approx(5.2)
    assert second["seconds_per_step"] == pytest.approx(0.2, abs=0.01)
    assert second["seconds_left"] == pytest.approx((60 - second["step"]) * second["seconds_per_step"])

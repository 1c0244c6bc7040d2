"""Files of a training run: weights and LoRA to load, samples, logs, the loss plot, and states."""

import resource

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sdvideo_core import SDVideo, save_gif
from sdvideo_core.families import DEMO
from sdvideo_core.lora import LoRA
from sdvideo_core.training import batches
from sdvideo_core.training.loss_plot import plot_loss, running_mean
from sdvideo_core.training.network import Network
from sdvideo_core.training.samples import save_samples
from tests.unit.small_training import differing, encoded_loader, make_trainer, train, weights


def test_lora_leaves_the_model_and_is_loadable(model, tmp_path):
    before = weights(model)
    x, t, context = torch.randn(1, 4, 3, 4, 4), torch.tensor([500]), model.text_encoder(["a"])
    file = make_trainer(model, tmp_path, lora_rank=4).train("shapes", steps=3, bar=False)
    assert file == tmp_path / "shapes_lora.safetensors"
    assert not differing(before, weights(model))
    with torch.no_grad():
        base = model.unet(x, t, context)
        with LoRA.from_file(model.unet, file):
            assert not torch.equal(model.unet(x, t, context), base)
        assert torch.equal(model.unet(x, t, context), base)


def test_the_file_is_a_checkpoint_of_the_average(model, tmp_path, small_model_dir):
    file = make_trainer(model, tmp_path, ema=0.5, save_dtype=torch.float32).train(steps=3, bar=False)
    state = max((tmp_path / "vid_states").iterdir())
    average = load_file(state / "ema.safetensors")
    copy = tmp_path / "model"
    copy.mkdir()
    for path in small_model_dir.iterdir():
        if path.name != model.config.unet_file:
            (copy / path.name).symlink_to(path)
    (copy / model.config.unet_file).with_suffix(".safetensors").symlink_to(file)
    loaded = SDVideo(copy, amp=False).unet
    assert all(torch.equal(value, average[f"unet.{name}"]) for name, value in loaded.named_parameters())
    assert differing(loaded.state_dict(), weights(model))


def scalars(folder):
    """What TensorBoard shows of a run: name -> step -> value."""
    events = EventAccumulator(str(folder)).Reload()
    return {name: {event.step: event.value for event in events.Scalars(name)} for name in events.Tags()["scalars"]}


def test_samples_logs_and_plot_are_written(model, tmp_path):
    options = {"sample_every": 3, "sample_prompts": ["a red circle", "a star"], "log_every": 2}
    trainer = train(make_trainer(model, tmp_path, log_with="tensorboard"), steps=4, run_name="run", **options)
    samples = sorted(path.name for path in (tmp_path / "run_samples").iterdir())
    assert samples == ["00000003_0.gif", "00000003_1.gif", "00000004_0.gif", "00000004_1.gif"]
    with Image.open(tmp_path / "run_samples" / samples[0]) as gif:
        assert (gif.size, gif.n_frames) == ((32, 32), 3)
    with Image.open(tmp_path / "run_loss.png") as plot:
        assert plot.size == (800, 450)
        assert len(plot.convert("RGB").getcolors(1 << 20)) > 50
    logged = scalars(tmp_path / "run")
    speed = logged.pop("samples_per_second")
    assert list(speed) == [2, 4]
    assert all(value > 0 for value in speed.values())
    means = {step: sum(trainer.losses[step - 2 : step]) / 2 for step in (2, 4)}
    assert logged == {"loss": pytest.approx(means), "lr": pytest.approx({2: 1e-3, 4: 1e-3})}


def test_the_rate_of_each_step_is_that_of_its_schedule(model, tmp_path):
    options = {"lr": 4e-3, "lr_min": 1e-3, "lr_delay": 1, "lr_warmup": 2, "lr_decay": 3, "log_with": "tensorboard"}
    train(make_trainer(model, tmp_path, lora_rank=1, **options), steps=7, log_every=1)
    expected = [1e-3, 2.5e-3, 4e-3, 4e-3, 4e-3, 3.25e-3, 1.75e-3]
    logged = scalars(tmp_path / "vid")["lr"]
    assert logged == pytest.approx(dict(enumerate(expected, 1)))
    saved = torch.load(tmp_path / "vid_states/step-00000007/optimizer.bin", weights_only=True)
    assert saved["param_groups"][0]["lr"] == pytest.approx(expected[-1])


def test_samples_do_not_change_the_run(new_model, tmp_path):
    losses = []
    for every in (None, 1):
        trainer = make_trainer(new_model(), tmp_path / str(every), ema=0.9)
        losses.append(train(trainer, steps=2, sample_every=every, sample_prompts=["a"]).losses)
    assert losses[0] == losses[1]


@pytest.mark.parametrize(("family", "scale"), [(DEMO, 2.0), (None, 9.0)], ids=["demo", "unknown"])
@pytest.mark.filterwarnings("ignore:SDVideo's demo model .* is asked for")
def test_samples_are_drawn_with_the_guidance_that_the_model_wants(model, tmp_path, family, scale):
    model.family = family
    [sample] = save_samples(model, ["a star"], tmp_path, step=1, size=(2, 4, 4))
    video = model("a star", guidance_scale=scale, timesteps=25, image_size=(32, 32), num_frames=2, seed=0)
    save_gif(video, tmp_path / "expected.gif")
    assert sample.read_bytes() == (tmp_path / "expected.gif").read_bytes()


@pytest.mark.parametrize("preencoded_txt", [True, False])
def test_encoders_make_room_where_clips_and_captions_come_encoded(model, tmp_path, monkeypatch, preencoded_txt):
    aside, device, moves = torch.device("cpu", 0), torch.device("cpu"), []
    monkeypatch.setattr(batches, "ASIDE", aside)
    for encoder in (model.vae, model.text_encoder):
        monkeypatch.setattr(encoder, "to", moves.append)
    data = encoded_loader(model) if preencoded_txt else None
    trainer = make_trainer(model, tmp_path, data, preencoded_txt=preencoded_txt)
    train(trainer, steps=2, sample_every=2, sample_prompts=["a star"])
    assert moves[::2] == moves[1::2]
    at_start, for_samples, at_end = [device, aside], [device, aside], [device]
    expected = [*at_start, *for_samples, *at_end] if preencoded_txt else [device] * 3
    assert moves[::2] == expected


def test_the_bar_tells_loss_rate_and_speed(model, tmp_path, capsys):
    make_trainer(model, tmp_path).train(steps=4, log_every=2)
    shown = capsys.readouterr().err
    assert "4/4" in shown
    assert "loss " in shown
    assert "lr 0.001" in shown
    assert "samples/s" in shown


def test_two_newest_states_are_kept_and_half_written_ones_ignored(model, tmp_path):
    train(make_trainer(model, tmp_path), steps=4, save_every=1)
    states = tmp_path / "vid_states"
    assert sorted(path.name for path in states.iterdir()) == ["step-00000003", "step-00000004"]
    (states / ".step-00000009.tmp").mkdir()
    (states / "step-9").mkdir()
    resumed = train(make_trainer(model, tmp_path, load_state=True), steps=5)
    assert len(resumed.losses) == 5


def test_states_that_were_half_written_are_removed_at_the_start(model, tmp_path):
    leftover = tmp_path / "vid_states" / ".step-00000009.tmp"
    leftover.mkdir(parents=True)
    left = []
    train(make_trainer(model, tmp_path), steps=1, callback=lambda *_: left.append(leftover.exists()))
    assert left == [False]


@pytest.mark.parametrize("share", [0.75, 1.5], ids=["weights", "moments"])
def test_a_state_that_does_not_fit_leaves_nothing(model, tmp_path, share):
    size = int(4 * share * sum(p.numel() for p in model.unet.parameters()))  # of a file; the half weights do fit
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    message = r"cannot write the state .*step-00000001: .+; make room .* resume, or train without states \("
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        with pytest.raises(OSError, match=message):
            train(make_trainer(model, tmp_path), steps=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name for path in tmp_path.rglob("*")} == {"vid_unet.safetensors", "vid_states"}


def test_running_mean_is_the_mean_of_the_last_steps():
    losses = [float(value) for value in range(200)]  # a window of 4
    assert running_mean(losses)[:3].tolist() == [0.0, 0.5, 1.0]
    assert running_mean(losses)[199] == sum(losses[196:]) / 4
    with pytest.raises(ValueError, match="at least one step"):
        plot_loss([])


def test_states_of_a_lora_leave_the_unet_out(model, tmp_path):
    train(make_trainer(model, tmp_path, lora_rank=2), steps=1)
    state = load_file(tmp_path / "vid_states/step-00000001/model.safetensors")
    assert state
    assert all(key.startswith("lora.") for key in state)


def test_names_of_wrappers_are_left_out_of_the_file(model, tmp_path):
    network = Network(model.unet)
    wrapped = {f"_orig_mod.{key}": value for key, value in network.state_dict().items()}
    network.save(wrapped, tmp_path / "a.safetensors", torch.float32, step=1)
    saved = load_file(tmp_path / "a.safetensors")
    assert not differing(network.unet.state_dict(), saved)

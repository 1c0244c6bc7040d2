"""Trainer on CUDA: mixed precisions without NaN, states, xformers, 8-bit AdamW, and the numbers of the CPU."""

import pytest
import torch
from torch import nn

from sdvideo_core.attention import sdpa, xformers_attention
from tests.unit.small_training import encoded_loader, loader, make_clips, make_trainer, train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def losses(new_model, tmp_path):
    """A function: device and options of a trainer -> its losses."""

    def losses(device="cuda", dropout=True, **options):
        model = new_model(device=device)
        for layer in model.unet.modules():
            if isinstance(layer, nn.Dropout) and not dropout:
                layer.p = 0.0
        trainer = make_trainer(model, tmp_path / device, loader(make_clips(size=8)), **options)
        return train(trainer, steps=20).losses

    return losses


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("options", [{}, {"lora_rank": 4}, {"gradient_checkpointing": True}])
def test_half_precision_is_finite_and_learns(losses, precision, options):
    values = losses(mixed_precision=precision, **options)
    assert torch.tensor(values).isfinite().all()
    assert sum(values[-5:]) < sum(values[:5])


@pytest.mark.parametrize("options", [{}, {"adam8bit": True}, {"lora_rank": 4, "ema": 0.9}, {"ema": 0.9}])
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_state_goes_on_as_the_run_that_wrote_it(new_model, tmp_path, precision, options):
    if "adam8bit" in options:
        pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")

    def run(folder, **more):
        trainer = make_trainer(new_model(device="cuda"), tmp_path / folder, **options, **more)
        return train(trainer, steps=8, save_every=6).losses

    options = options | {"mixed_precision": precision}
    state = tmp_path / "whole/vid_states/step-00000006"
    whole, resumed = run("whole"), run("resumed", load_state=state)
    assert resumed[:7] == whole[:7]  # the seventh is that of the state's weights
    assert resumed[7] == pytest.approx(whole[7], rel=1e-3)  # sums of gradients on a GPU have no fixed order
    assert (state / "scaler.pt").exists() == (precision == "fp16")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_xformers_is_used_and_changes_rounding_alone(new_model, tmp_path, precision):
    pytest.importorskip("xformers", reason="needs xformers")
    runs, used = {}, []
    for on in (False, True):
        model = new_model(device="cuda")
        trainer = make_trainer(model, tmp_path / str(on), xformers=on, mixed_precision=precision)
        runs[on] = train(trainer, steps=5, callback=lambda *_, unet=model.unet: used.append(unet.attention)).losses
    assert used == [sdpa] * 5 + [xformers_attention] * 5
    assert runs[True] == pytest.approx(runs[False], rel=2e-2)


def test_the_first_loss_is_that_of_the_cpu(losses):
    # A GPU's generator draws other masks.
    assert losses(dropout=False)[0] == pytest.approx(losses("cpu", dropout=False)[0], rel=1e-3)


def test_8_bit_adamw_learns(losses):
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    values = losses(adam8bit=True)
    assert sum(values[-5:]) < sum(values[:5])


def test_encoders_leave_the_gpu_to_the_network_where_clips_come_encoded(new_model, tmp_path):
    model = new_model(device="cuda")
    encoders = (model.vae, model.text_encoder)

    def places():
        return {parameter.device.type for encoder in encoders for parameter in encoder.parameters()}

    seen = []
    trainer = make_trainer(model, tmp_path, encoded_loader(model), preencoded_txt=True)
    options = {"sample_every": 1, "sample_prompts": ["a star"]}
    train(trainer, steps=2, callback=lambda *_: seen.append(places()), **options)
    assert seen == [{"cpu"}, {"cpu"}]
    assert len(list((tmp_path / "vid_samples").iterdir())) == 2
    assert places() == {"cuda"}

"""Configuration of a model: the shapes of its three networks and the files they come from."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class UNetConfig:
    """Shape of the 3-D UNet, named as in ModelScope's configuration.json less its prefix `unet_`."""

    in_dim: int = 4  # latent channels in
    dim: int = 320  # channels at full latent resolution
    context_dim: int = 1024  # width of one text token
    out_dim: int = 4  # latent channels out
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)  # channels of each resolution level, in units of dim
    num_heads: int = 8  # heads of the first temporal transformer; elsewhere channels // head_dim
    head_dim: int = 64
    res_blocks: int = 2  # residual blocks of each level
    attn_scales: tuple[float, ...] = (1.0, 0.5, 0.25)  # resolutions with attention, relative to the latent's
    dropout: float = 0.1  # of residual and temporal convolution blocks while training


@dataclass(frozen=True)
class VAEConfig:
    """Shape of the KL-f8 autoencoder of latent diffusion (Rombach et al. 2022)."""

    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    z_channels: int = 4


@dataclass(frozen=True)
class TextConfig:
    """Shape of an OpenCLIP text tower; the default is ViT-H-14's."""

    width: int = 1024
    layers: int = 24
    heads: int = 16
    context_length: int = 77
    vocab_size: int = 49408


@dataclass(frozen=True)
class ModelConfig:
    """What a ModelScope directory's configuration.json says; file names are relative to the directory."""

    unet: UNetConfig = field(default_factory=UNetConfig)
    unet_file: str = "text2video_pytorch_model.pth"
    vae_file: str = "VQGAN_autoencoder.pth"
    text_file: str = "open_clip_pytorch_model.bin"
    max_frames: int = 16

"""Text encoder: the OpenCLIP text tower, read at its penultimate block as Stable Diffusion 2 and ModelScope do."""

from __future__ import annotations

import warnings

import torch
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import Transformer
from torch import Tensor, nn

from .config import TextConfig


class TextEncoder(nn.Module):
    """Prompts -> one vector per token, with the module names of an OpenCLIP checkpoint.

    The checkpoint's last block never runs, so it is not built: `config.layers` counts it, `transformer` does not.
    """

    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length, config.width))
        self.transformer = Transformer(config.width, config.layers - 1, config.heads)
        self.ln_final = nn.LayerNorm(config.width)
        self.tokenizer = SimpleTokenizer(context_length=config.context_length)

    def forward(self, prompts: list[str]) -> Tensor:
        """B prompts -> (B, context_length, width); longer ones are cut, with a warning, shorter ones padded with 0."""
        self._warn_of_cuts(prompts)
        tokens = self.tokenizer(prompts).to(self.positional_embedding.device)
        return self.encode_tokens(tokens)

    def _warn_of_cuts(self, prompts: list[str]) -> None:
        room = self.config.context_length - 2  # beside the tokens of start and end
        for prompt in prompts:
            if (length := len(self.tokenizer.encode(prompt))) > room:
                warnings.warn(f"a prompt has {length} tokens and is cut to {room}; shorten {prompt!r}", stacklevel=3)

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """Token ids (B, context_length) -> (B, context_length, width)."""
        x = self.token_embedding(tokens) + self.positional_embedding
        length = tokens.shape[1]
        causal = torch.full((length, length), float("-inf"), dtype=x.dtype, device=x.device).triu(1)
        return self.ln_final(self.transformer(x, attn_mask=causal))

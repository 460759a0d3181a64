"""The lip-sync diffusion network: a U-Net conditioned on a reference crop and a window of mel spectrogram.

Lineage: the U-Net of guided diffusion (Dhariwal & Nichol 2021, arXiv 2105.05233) as Diff2Lip extends it
(Mukhopadhyay et al., WACV 2024, arXiv 2308.09716). Attribute names are the released checkpoint's state-dict keys.
"""

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)

AUDIO_CHANNELS = 32
AUDIO_CHANNEL_MULT = (1, 2, 3, 4)
AUDIO_RES_BLOCKS = 2


class GroupNorm32(nn.GroupNorm):
    """GroupNorm over 32 groups, computed in float32 whatever the input's dtype (REFERENCE.md: Network)."""

    def __init__(self, channels: int) -> None:
        super().__init__(32, channels)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).type(x.dtype)


def zero_module(module: M) -> M:
    """Set all parameters of `module` to zero and return it, so that a residual branch starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """Sinusoidal embedding, cosines first: [N] timesteps (may be fractional) -> float32 [N x dim], `dim` even."""
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps[:, None].float() * torch.exp(-math.log(max_period) * exponents)
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)


class ResBlock(nn.Module):
    """[N x channels x H x W] -> [N x out_channels x H' x W'], conditioned on an embedding [N x emb_channels].

    :param scale: (vertical, horizontal) resampling factor, applied on both branches between activation and convolution.
    :param up: nearest-neighbour upsampling by `scale` instead of average pooling.
    """

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        dropout: float,
        out_channels: int | None = None,
        use_scale_shift_norm: bool = False,
        scale: tuple[int, int] = (1, 1),
        up: bool = False,
    ) -> None:
        super().__init__()
        out_channels = out_channels or channels
        self.use_scale_shift_norm = use_scale_shift_norm
        self.scale = scale
        self.up = up
        self.in_layers = nn.Sequential(
            GroupNorm32(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        emb_out_channels = 2 * out_channels if use_scale_shift_norm else out_channels
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, emb_out_channels))
        self.out_layers = nn.Sequential(
            GroupNorm32(out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            zero_module(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection = (
            nn.Identity() if out_channels == channels else nn.Conv2d(channels, out_channels, 1)
        )

    def _resample(self, x: Tensor) -> Tensor:
        if self.scale == (1, 1):
            return x
        if self.up:
            return F.interpolate(x, scale_factor=self.scale, mode="nearest")
        return F.avg_pool2d(x, self.scale)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        norm, activation, conv = self.in_layers
        h = conv(self._resample(activation(norm(x))))
        emb_out = self.emb_layers(emb).type(h.dtype)[:, :, None, None]
        if self.use_scale_shift_norm:
            scale, shift = emb_out.chunk(2, dim=1)
            h = self.out_layers[0](h) * (1 + scale) + shift
            h = self.out_layers[1:](h)
        else:
            h = self.out_layers(h + emb_out)
        return self.skip_connection(self._resample(x)) + h


class AttentionBlock(nn.Module):
    """Self-attention over all positions, [N x C x H x W] -> same shape.

    The channels of `qkv` are split into heads first and into q, k, v second ("legacy" order, REFERENCE.md: Network).
    """

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = GroupNorm32(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zero_module(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        # positions before channels: a view of channels_last memory, and the layout that fused attention needs
        h = self.norm(x).flatten(2).transpose(1, 2)
        qkv = F.linear(h, self.qkv.weight.squeeze(-1), self.qkv.bias)
        q, k, v = qkv.unflatten(2, (self.num_heads, 3, -1)).transpose(1, 2).unbind(dim=3)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        h = F.linear(h, self.proj_out.weight.squeeze(-1), self.proj_out.bias)
        return x + h.transpose(1, 2).unflatten(2, x.shape[2:])


class TimestepEmbedSequential(nn.Sequential):
    """A sequence that hands the embedding to those of its children that take one."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


def _timestep_mlp(channels: int, emb_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, emb_channels), nn.SiLU(), nn.Linear(emb_channels, emb_channels))


class TFGAudioEncoder(nn.Module):
    """Mel window [N x audio_dim x 16] -> audio features [N x 128 x 8 x 8] (REFERENCE.md: Network, Audio).

    It has a timestep MLP of its own that is always fed t = 0: the audio code does not depend on the diffusion step.
    """

    def __init__(self, audio_dim: int, dropout: float, use_scale_shift_norm: bool) -> None:
        super().__init__()
        ch = AUDIO_CHANNELS
        self.time_embed = _timestep_mlp(ch, ch)
        self.input_block = nn.Sequential(nn.Conv1d(audio_dim, 64, 3, padding=1), GroupNorm32(64), nn.SiLU())
        blocks: list[nn.Module] = [TimestepEmbedSequential(nn.Conv2d(1, ch, 3, padding=1))]
        mel_axis = 64
        for level, mult in enumerate(AUDIO_CHANNEL_MULT):
            for _ in range(AUDIO_RES_BLOCKS):
                out = AUDIO_CHANNELS * mult
                blocks.append(TimestepEmbedSequential(ResBlock(ch, AUDIO_CHANNELS, dropout, out, use_scale_shift_norm)))
                ch = out
            if level + 1 < len(AUDIO_CHANNEL_MULT):
                scale = (2, 1) if mel_axis > 16 else (2, 2)
                down = ResBlock(ch, AUDIO_CHANNELS, dropout, ch, use_scale_shift_norm, scale=scale)
                blocks.append(TimestepEmbedSequential(down))
                mel_axis //= 2
        self.encoder_blocks = nn.ModuleList(blocks)
        self.middle_block = TimestepEmbedSequential(
            ResBlock(ch, AUDIO_CHANNELS, dropout, ch, use_scale_shift_norm)
        )
        self.out_channels = ch

    def forward(self, indiv_mels: Tensor) -> Tensor:
        zeros = torch.zeros(indiv_mels.shape[0], device=indiv_mels.device)
        emb = self.time_embed(timestep_embedding(zeros, AUDIO_CHANNELS))
        h = self.input_block(indiv_mels).unsqueeze(1)
        for block in self.encoder_blocks:
            h = block(h, emb)
        return self.middle_block(h, emb)


class TFGModel(nn.Module):
    """Talking-face U-Net: (x_t, t, conditioning) -> prediction [N x out_channels x H x W].

    :param image_size: height and width of the crops in pixels.
    :param model_channels: base channel count.
    :param attention_ds: downsampling factors at which the blocks have attention (the middle block always has it).
    :param num_heads: heads where `num_head_channels` is -1; on the way up `num_heads_upsample` (-1: the same).
    :param audio_as_style: add the pooled audio code to the timestep embedding; else concatenate the audio
        features with the image features before the middle block (needs an 8 x 8 bottom).
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_ds: Sequence[int],
        channel_mult: Sequence[int],
        dropout: float = 0.0,
        num_heads: int = 4,
        num_head_channels: int = -1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = False,
        audio_as_style: bool = True,
        audio_dim: int = 80,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.model_channels = model_channels
        self.audio_as_style = audio_as_style
        self.dtype = torch.float32
        emb_channels = 4 * model_channels

        def heads(channels: int, count: int) -> int:
            return count if num_head_channels == -1 else channels // num_head_channels

        def res(channels: int, out: int, scale: tuple[int, int] = (1, 1), up: bool = False) -> ResBlock:
            return ResBlock(channels, emb_channels, dropout, out, use_scale_shift_norm, scale, up)

        self.time_embed = _timestep_mlp(model_channels, emb_channels)

        ch = model_channels * channel_mult[0]
        self.input_blocks = nn.ModuleList([TimestepEmbedSequential(nn.Conv2d(in_channels, ch, 3, padding=1))])
        skip_channels = [ch]
        ds = 1
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                layers: list[nn.Module] = [res(ch, model_channels * mult)]
                ch = model_channels * mult
                if ds in attention_ds:
                    layers.append(AttentionBlock(ch, heads(ch, num_heads)))
                self.input_blocks.append(TimestepEmbedSequential(*layers))
                skip_channels.append(ch)
            if level + 1 < len(channel_mult):
                self.input_blocks.append(TimestepEmbedSequential(res(ch, ch, scale=(2, 2))))
                skip_channels.append(ch)
                ds *= 2

        self.audio_encoder = TFGAudioEncoder(audio_dim, dropout, use_scale_shift_norm)
        audio_channels = self.audio_encoder.out_channels
        self.middle_block = TimestepEmbedSequential(
            res(ch if audio_as_style else ch + audio_channels, ch),
            AttentionBlock(ch, heads(ch, num_heads)),
            res(ch, ch),
        )

        if num_heads_upsample == -1:
            num_heads_upsample = num_heads
        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(channel_mult))):
            for i in range(num_res_blocks + 1):
                layers = [res(ch + skip_channels.pop(), model_channels * mult)]
                ch = model_channels * mult
                if ds in attention_ds:
                    layers.append(AttentionBlock(ch, heads(ch, num_heads_upsample)))
                if level > 0 and i == num_res_blocks:
                    layers.append(res(ch, ch, scale=(2, 2), up=True))
                    ds //= 2
                self.output_blocks.append(TimestepEmbedSequential(*layers))

        self.out = nn.Sequential(
            GroupNorm32(ch), nn.SiLU(), zero_module(nn.Conv2d(ch, out_channels, 3, padding=1))
        )
        if audio_as_style:
            self.audio_encoder_to_style = nn.Sequential(
                GroupNorm32(audio_channels),
                nn.SiLU(),
                nn.AdaptiveAvgPool2d(1),
                zero_module(nn.Conv2d(audio_channels, emb_channels, 1)),
            )

    def convert_torso(self, dtype: torch.dtype) -> None:
        """Make the torso's convolutions float16 or bfloat16; embeddings, audio encoder and output stay float32."""
        for block in (self.input_blocks, self.middle_block, self.output_blocks):
            for module in block.modules():
                if isinstance(module, nn.Conv1d | nn.Conv2d):
                    module.to(dtype)
        self.dtype = dtype

    def encode_audio(self, indiv_mels: Tensor) -> Tensor:
        """Mel windows [N x audio_dim x 16] -> audio code: [N x emb_channels] as style, else [N x 128 x 8 x 8].

        It does not depend on the diffusion step: compute it once for a batch, then call `denoise` at every step.
        """
        features = self.audio_encoder(indiv_mels)
        return self.audio_encoder_to_style(features).flatten(1) if self.audio_as_style else features

    def denoise(
        self, x: Tensor, timesteps: Tensor, cond_img: Tensor, ref_img: Tensor | None, audio_code: Tensor, mask: Tensor
    ) -> Tensor:
        """The network without its audio encoder; parameters as in `forward`, `audio_code` from `encode_audio`."""
        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels))
        if self.audio_as_style:
            emb = emb + audio_code
        x = x * mask + cond_img * (1 - mask)
        images = [x, cond_img] if ref_img is None else [x, cond_img, ref_img]
        h = torch.cat(images, dim=1).type(self.dtype)
        skips = []
        for block in self.input_blocks:
            h = block(h, emb)
            skips.append(h)
        if not self.audio_as_style:
            h = torch.cat([h, audio_code.type(h.dtype)], dim=1)
        h = self.middle_block(h, emb)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb)
        return self.out(h.type(x.dtype))

    def forward(
        self, x: Tensor, timesteps: Tensor, cond_img: Tensor, ref_img: Tensor | None, indiv_mels: Tensor, mask: Tensor
    ) -> Tensor:
        """Predict from the noisy crop.

        :param x: [N x 3 x H x W] x_t; outside the mask it is replaced by `cond_img`.
        :param timesteps: [N] diffusion steps of the unspaced process.
        :param cond_img: [N x 3 x H x W] in [-1, 1], the crop with its lower part hidden by noise.
        :param ref_img: [N x 3*nrefer x H x W] in [-1, 1], or None for networks without reference.
        :param indiv_mels: [N x audio_dim x 16] mel windows in [-4, 4].
        :param mask: [N x 1 x H x W], 1 where the face is to be generated.
        :return: [N x out_channels x H x W]: epsilon or x_0, then the variance channels where sigma is learned.
        """
        return self.denoise(x, timesteps, cond_img, ref_img, self.encode_audio(indiv_mels), mask)

"""Axial vision transformer of multiple physics pretraining: fields by label, attention over time, along W, along H."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from timm.layers.mlp import Mlp
from torch import Tensor, nn
from torch.nn import functional as F

from physrep.distributed import share, world
from physrep.encoders.base import Encoder, drop_rates, through
from physrep.errors import UserError
from physrep.pretrained import State, load_pretrained

FLAT = 1e-5  # a map's std over the magnitude of all maps, under which it is rounding
SLOTS = {"space_bag.weight": 1, "out_kernel": 1, "out_bias": 0}  # the axis of the fields' slots


class AViT(Encoder):
    """Axial vision transformer (McCabe et al. 2023); its defaults are the published Ti, 7,285,884 weights with de-stem.

    clip [B, C, T, H, W] -> the last frame's map [B, D, 1, h, w], a token for a square whose side is the product of
    `stem`. A clip is normalised over (T, H, W) first (`revin`): features do not hold its absolute amplitude. Without
    positions: any number of frames and any grid of two tokens or more. Along `periodic` axes ([H, W]) distances wrap.

    `labels` gives the slot of each channel among `states` fields, by default 0..C-1. Published weights, which need
    them, know 0 water height, 1-3 velocity x, y and particles, 4-5 activator and inhibitor, 6-9 velocity x, y, density
    and pressure; slots 10 and 11 are untrained. `drop_path` acts where an objective hands a generator to `stack`. The
    first `recompute` blocks keep less memory and take longer.

    State dict: the published names `space_bag`, `embed.in_proj`, `blocks.i.{temporal,spatial}`, 35 tensors a block; the
    names inside a block follow common usage and were not compared with a published file. Biases of the norms that do
    not centre are unused there, here buffers. `weights` is such a file, or a run's last.ckpt. Raises UserError for
    labels, grids and files that do not fit.
    """

    keeps_scale = False
    layers: ClassVar[tuple[str, int]] = ("blocks", 2)

    def __init__(
        self,
        channels: int,
        periodic: Sequence[bool] = (False, False),
        width: int = 192,
        depth: int = 12,
        heads: int = 3,
        stem: Sequence[int] = (4, 2, 2),
        labels: list[int] | None = None,
        states: int = 12,
        scale: float = 1e-6,
        drop_path: float = 0.2,
        recompute: int = 0,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        if width % heads or width % 4:
            raise UserError(f"encoder.width: {width} must be a multiple of 4 and of encoder.heads={heads}; change one")
        self.recompute = recompute
        self.width, self.stem, self.patch, self.periodic = width, list(stem), math.prod(stem), list(periodic)
        self.states = max(states, channels) if labels is None else states
        self.labels: Tensor
        self.register_buffer("labels", torch.tensor(fit_labels(labels, channels, self.states)), persistent=False)
        self.rates = drop_rates(drop_path, depth)
        self.space_bag = FieldLinear(self.states, width // 4)
        self.embed = Stem(width, stem)
        self.blocks = nn.ModuleList(Block(width, heads, periodic, scale) for _ in range(depth))
        self.weights = weights
        if weights:
            load_pretrained(self, weights, published(self, labelled=labels is not None))

    def forward(self, clip: Tensor) -> Tensor:
        """Return the last frame's map [B, D, 1, h, w] of a clip [B, C, T, H, W]."""
        return self.frames(clip)[:, :, -1:]

    def frames(self, clip: Tensor) -> Tensor:
        """Return the maps of all frames, [B, D, T, h, w], of a clip [B, C, T, H, W]."""
        return self.stack(revin(clip)[0])

    def stack(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the maps [B, D, T, h, w] of clips already normalised, x [B, C, T, H, W].

        Drop path draws from `generator`, on the CPU and for the clips of all ranks; without one nothing is dropped.
        """
        height, width = x.shape[-2:]
        if height % self.patch or width % self.patch or height * width == self.patch**2:
            raise UserError(f"encoder: a grid of {[height, width]} (H, W) is not two patches or more of {self.patch} x "
                            f"{self.patch} cells; change data.crop, data.cut, data.size or encoder.stem")  # fmt: skip
        maps = self.embed(x.transpose(1, 2).flatten(0, 1), *self.space_bag(self.labels))
        y: Tensor = maps.unflatten(0, (x.shape[0], x.shape[2]))
        for i, (block, rate) in enumerate(zip(self.blocks, self.rates, strict=True)):
            keep = torch.ones(len(x) * world(), 3)
            if generator is not None:
                keep.bernoulli_(1 - rate, generator=generator).div_(1 - rate)
            dropped = share(keep).T[..., None, None, None, None].to(y)
            y = through(block, y, dropped, recompute=i < self.recompute)
        return y.transpose(1, 2)


def fit_labels(labels: list[int] | None, channels: int, states: int) -> list[int]:
    """Return the slot of every channel, [C]. Raises UserError unless they are as many different slots of `states`."""
    labels = list(range(channels)) if labels is None else labels
    if len(labels) != channels or len(set(labels)) < channels or not all(0 <= i < states for i in labels):
        raise UserError(f"encoder.labels: {labels} are not {channels} different slots from 0 to {states - 1}, one for "
                        "each channel of the data; change encoder.labels or raise encoder.states")  # fmt: skip
    return labels


def published(module: nn.Module, part: str = "", labelled: bool = True) -> Callable[[State], State]:
    """Return what picks and names the tensors of an AViT, or with part="debed." of its de-stem, out of a file's.

    Published names, bare or after `module.`, and those of a run's last.ckpt. Slots of fields that the file does not
    have stay as the module has them. Where channels are not `labelled`, picking from a file that is not a run's raises
    UserError: its first slots are other fields than the data's.
    """

    def pick(state: State) -> State:
        state = {n.removeprefix("module."): x for n, x in state.items()}
        start = part or "encoder." * any(n.startswith("encoder.") for n in state)
        if not start and not labelled:
            raise UserError("encoder.weights: are published ones, whose slots are fields by name; say which the data's "
                            "channels are, such as encoder.labels=[0,1,2] for height and velocities")  # fmt: skip
        state = {n.removeprefix(start): x for n, x in state.items() if n.startswith(start)}
        state = {n: x for n, x in state.items() if not n.startswith("debed.")}
        own = module.state_dict()
        for name, axis in SLOTS.items():
            if name in state and name in own and state[name].ndim == own[name].ndim:
                read, made = state[name].movedim(axis, 0), own[name].movedim(axis, 0)
                if read.shape[1:] == made.shape[1:]:
                    state[name] = torch.cat([read, made[len(read) :]]).movedim(0, axis)
        return state

    return pick


def revin(clip: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise every channel of every clip [B, C, T, H, W] over (T, H, W); mean and std [B, C, 1, 1, 1] undo it.

    The std has 1e-7 added, as published; no gradient goes through the two.
    """
    mean = clip.detach().float().mean((2, 3, 4), keepdim=True)
    centred = clip - mean
    square = centred.detach().square().sum((2, 3, 4), keepdim=True)
    std = (square / (clip[0, 0].numel() - 1)).sqrt() + 1e-7
    return centred / std, mean, std


class FieldLinear(nn.Module):
    """The columns of a linear layer over all known fields that belong to the fields at hand."""

    def __init__(self, states: int, width: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(states)
        self.weight = nn.Parameter(torch.empty(width, states).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(width).uniform_(-bound, bound))

    def forward(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return weight [d, C] and bias [d] for labels [C], scaled to the variance that all fields would give."""
        scale = math.sqrt(self.weight.shape[1] / len(labels))
        weight, bias = scale * self.weight, scale * self.bias
        return weight[:, labels], bias


class Stem(nn.Module):
    """Patches in three convolutions without overlap (hMLP, Touvron et al. 2022)."""

    def __init__(self, width: int, sizes: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for (a, b), size in zip(pairwise([width // 4] * len(sizes) + [width]), sizes, strict=True):
            layers += [nn.Conv2d(a, b, size, size, bias=False), RmsInstanceNorm(b), nn.GELU()]
        self.in_proj = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Return x [N, C, H, W] as patches [N, D, h, w]; its linear map by weight and bias joins the first kernel."""
        first: Tensor = self.in_proj[0].weight  # type: ignore[assignment]
        kernel, offset = torch.einsum("oihw,ic->ochw", first, weight), torch.einsum("oihw,i->o", first, bias)
        x = x.contiguous(memory_format=torch.channels_last)
        patches: Tensor = self.in_proj[1:](F.conv2d(x, kernel, offset, stride=first.shape[-1]))
        return patches


class Destem(nn.Module):
    """From patches back to fields; the last kernel has a slot for every known field."""

    def __init__(self, width: int, sizes: Sequence[int], states: int) -> None:
        super().__init__()
        inner, last = width // 4, sizes[0]
        layers: list[nn.Module] = []
        for (a, b), size in zip(pairwise([width] + [inner] * (len(sizes) - 1)), sizes[:0:-1], strict=True):
            layers += [nn.ConvTranspose2d(a, b, size, size, bias=False), RmsInstanceNorm(b), nn.GELU()]
        self.out_proj = nn.Sequential(*layers)
        bound = 1 / math.sqrt(inner)
        self.out_kernel = nn.Parameter(torch.empty(inner, states, last, last).uniform_(-bound, bound))
        self.out_bias = nn.Parameter(torch.empty(states).uniform_(-bound, bound))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Return the fields [N, C, H, W] that labels [C] name, of patches x [N, D, h, w]."""
        kernel = self.out_kernel[:, labels]
        return F.conv_transpose2d(self.out_proj(x), kernel, self.out_bias[labels], stride=kernel.shape[-1])


def spread(x: Tensor, correction: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return maps x [..., D, h, w] less their means over the grid, those, the variances, and which are flat.

    The variance of a flat map is rounding: a few divisions by it turn a frame that is constant in all channels, or its
    gradient, into infinity. Norms take such a map for its mean and, for its variance, the mean square of all its frame.
    """
    x = x.float()
    mean = x.mean((-2, -1), keepdim=True)
    centred = x - mean  # and squared: `torch.var_mean` takes four times as long on a CPU
    var = centred.square().sum((-2, -1), keepdim=True) / (x.shape[-2] * x.shape[-1] - correction)
    power = (var + mean.square()).mean(-3, keepdim=True)
    flat = var <= FLAT**2 * power
    var = torch.where(flat, power, var)
    return centred, mean, torch.where(var > 0, var, 1), flat


class InstanceNorm(nn.Module):
    """Centre every map and divide it by its std over the grid: `nn.InstanceNorm2d`, but for flat maps (`spread`)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised maps, x [..., D, h, w], in float32."""
        centred, _, var, flat = spread(x, correction=0)
        scale = (var + 1e-5).rsqrt().masked_fill(flat, 0) * self.weight[:, None, None]
        return torch.addcmul(self.bias[:, None, None], centred, scale)


class RmsInstanceNorm(nn.Module):
    """Divide every map by its std over the grid, without centring."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.register_buffer("bias", torch.zeros(width))  # published files have one and do not use it

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised maps, x [..., D, h, w], in float32."""
        centred, mean, var, flat = spread(x, correction=1)
        scale = self.weight[:, None, None] / (var.sqrt() + 1e-8)
        return torch.addcmul(mean * scale, centred, scale.masked_fill(flat, 0))


class RelativeBias(nn.Module):
    """T5's bias by bucket of distance, learned for every head (Raffel et al. 2020)."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.relative_attention_bias = nn.Embedding(32, heads)
        nn.init.trunc_normal_(self.relative_attention_bias.weight, std=0.02)

    def forward(self, n: int, periodic: bool) -> Tensor:
        """Return the bias [heads, n, n] between n queries and n keys; a periodic axis wraps their distance."""
        place = torch.arange(n, device=self.relative_attention_bias.weight.device)
        distance = place - place[:, None]
        if periodic:
            distance = (distance + n // 2) % n - n // 2
        bias: Tensor = self.relative_attention_bias(bucket(distance))
        return bias.permute(2, 0, 1)


def bucket(distance: Tensor) -> Tensor:
    """Return T5's bucket, 0 to 31, of key's place minus query's.

    Each sign has 16: one a distance up to 7, then logarithmic up to 32 and beyond, as the published code computes it
    (the 128 of its constructor is not passed on).
    """
    far = distance.abs()
    log = 8 + (torch.log2(far.clamp(min=8).double() / 8) * 4).long().clamp(max=7)
    return torch.where(far < 8, far, log) + 16 * (distance > 0)


def attend(q: Tensor, k: Tensor, v: Tensor, axis: int, bias: Tensor) -> Tensor:
    """Attend along one axis (1, 2 or 3) of q, k, v [B, T, h, w, heads, d]; bias [heads, n, n] -> as q.

    Written out, since PyTorch has no fused attention for a bias that is learned on a CPU and its plain one is slower.
    """
    q, k, v = (x.movedim(axis, 3).transpose(3, 4) for x in (q, k, v))
    scores = torch.add(bias, q @ k.mT, alpha=q.shape[-1] ** -0.5)
    attended: Tensor = (scores.softmax(-1) @ v).transpose(3, 4).movedim(3, axis)
    return attended


class Attention(nn.Module):
    """Queries, keys and values for attention along any axes: what temporal and spatial attention share."""

    def __init__(self, width: int, heads: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = norm(width), norm(width)
        self.input_head, self.output_head = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)
        self.qnorm, self.knorm = nn.LayerNorm(width // heads), nn.LayerNorm(width // heads)
        self.rel_pos_bias = RelativeBias(heads)

    def mix(self, x: Tensor, axes: dict[int, bool]) -> Tensor:
        """Return the average of x [B, T, D, h, w] attended along `axes`: {1 T, 2 h or 3 w: whether it is periodic}."""
        packed = _linear(self.input_head, self.norm1(x).movedim(2, -1)).unflatten(-1, (self.heads, 3, -1))
        q, k, v = packed.unbind(-2)  # each [B, T, h, w, heads, d]
        q, k = self.qnorm(q).to(v), self.knorm(k).to(v)
        mixed = [attend(q, k, v, a, self.rel_pos_bias(q.shape[a], wraps)) for a, wraps in axes.items()]
        y = torch.stack(mixed).mean(0)
        return _linear(self.output_head, self.norm2(y.flatten(4).movedim(-1, 2)).movedim(2, -1)).movedim(-1, 2)


def _linear(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Apply a 1x1 convolution, which the published weights are, to the last axis."""
    return F.linear(x, conv.weight.flatten(1), conv.bias)


class Temporal(Attention):
    """Attention over all frames, at every token alone."""

    def __init__(self, width: int, heads: int, scale: float) -> None:
        super().__init__(width, heads, InstanceNorm)
        self.gamma = nn.Parameter(torch.full((width,), scale))

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        """Return the refined maps; x [B, T, D, h, w], keep [B, 1, 1, 1, 1] scales what is added."""
        return torch.addcmul(x, keep * self.gamma[:, None, None], self.mix(x, {1: False}))


class Spatial(Attention):
    """Attention along W and along H, averaged; then an MLP, normalised after it."""

    def __init__(self, width: int, heads: int, periodic: Sequence[bool], scale: float) -> None:
        super().__init__(width, heads, RmsInstanceNorm)
        self.axes = {3: periodic[1], 2: periodic[0]}
        self.mlp, self.mlp_norm = Mlp(width, 4 * width), RmsInstanceNorm(width)
        self.gamma_att = nn.Parameter(torch.full((width,), scale))
        self.gamma_mlp = nn.Parameter(torch.full((width,), scale))

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        """Return the refined maps; x [B, T, D, h, w], keep [2, B, 1, 1, 1, 1] scales what is added."""
        x = torch.addcmul(x, keep[0] * self.gamma_att[:, None, None], self.mix(x, self.axes))
        y = self.mlp_norm(self.mlp(x.movedim(2, -1)).movedim(-1, 2))
        return torch.addcmul(x, keep[1] * self.gamma_mlp[:, None, None], y)


class Block(nn.Module):
    """Time, then space."""

    def __init__(self, width: int, heads: int, periodic: Sequence[bool], scale: float) -> None:
        super().__init__()
        self.temporal = Temporal(width, heads, scale)
        self.spatial = Spatial(width, heads, periodic, scale)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        """Return the refined maps; x [B, T, D, h, w], keep [3, B, 1, 1, 1, 1]."""
        y: Tensor = self.spatial(self.temporal(x, keep[0]), keep[1:])
        return y

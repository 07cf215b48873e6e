"""A frozen encoder with its normaliser: what probes and users take from a run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from physrep.data.transforms import by_clip, normalise, resize
from physrep.encoders.base import Encoder
from physrep.errors import UserError
from physrep.objectives.base import Objective


class Frozen(nn.Module):
    """An objective's `encode`, without gradients, behind the training split's normaliser.

    `meta` holds channels, mean, std (of the fields, [C]), frames, grid (cells of a clip before resizing), size (after
    it, or None), normalise (train or clip), targets, theta_mean, theta_std, the fingerprint of the data and the hash of
    the run's config.
    """

    def __init__(self, objective: Objective, meta: dict[str, Any], step: int) -> None:
        super().__init__()
        self.objective = objective.eval().requires_grad_(False)
        self.meta, self.step = meta, step
        self._clips, self._taps = 0, dict[str, Tensor]()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(meta["mean"]), persistent=False)
        self.register_buffer("std", torch.tensor(meta["std"]), persistent=False)

    @torch.no_grad()
    def encode(self, clip: Tensor, normalised: bool = False) -> Tensor:
        """Return tokens [B, N, D] of raw clips [B, C, T, H, W], in the files' units and order of channels (`meta`).

        A clip is resized as the training clips were. `normalised` clips are taken as a data module prepared them.
        Raises UserError if the number of channels is another than the encoder was trained on.
        """
        if clip.ndim != 5 or clip.shape[1] != len(self.meta["channels"]):
            raise UserError(f"encode: expected [B, {len(self.meta['channels'])}, T, H, W] with channels "
                            f"{', '.join(self.meta['channels'])}, got {list(clip.shape)}")  # fmt: skip
        self._clips = len(clip)
        self._taps.clear()
        if normalised:
            return self.objective.encode(clip)
        clip = normalise(clip, self.mean, self.std)
        if self.meta["size"]:
            scales = [s / g for s, g in zip(self.meta["size"], self.meta["grid"], strict=True)]
            clip = resize(clip, [round(n * s) for n, s in zip(clip.shape[3:], scales, strict=True)])
        if self.meta["normalise"] == "clip":
            clip = by_clip(clip, clip.shape[2])
        return self.objective.encode(clip)

    def layers(self) -> list[str]:
        """Return the names of the encoder's layers, from 1."""
        return [str(i) for i in range(1, 1 + len(self._members(self.objective.encoder)))]

    @contextmanager
    def tapped(self, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        """Yield a dict that every `encode` fills anew: for each layer a token [B, 1, 2 D].

        It is mean and standard deviation of the layer's output over space and time. `encode` raises UserError where the
        objective passes a layer more than once.
        """
        with ExitStack() as hooks:
            for encoder in (m for m in self.objective.modules() if isinstance(m, Encoder)):
                for layer in layers:
                    module = self._members(encoder)[int(layer) - 1]
                    hooks.callback(module.register_forward_hook(partial(self._keep, layer, encoder.layers[1])).remove)
            yield self._taps

    def _keep(self, layer: str, axis: int, _: nn.Module, __: tuple[Tensor, ...], found: Tensor) -> None:
        if layer in self._taps:
            raise UserError(f"layers: {type(self.objective).__name__} passes layer {layer} twice for a clip; leave "
                            "layers out")  # fmt: skip
        values = found.movedim(axis, -1)
        rows = values.reshape(self._clips, -1, values.shape[-1]).float()
        mean = rows.mean(1, keepdim=True)  # torch's own deviation takes four times as long on a CPU
        self._taps[layer] = torch.cat([mean, (rows - mean).square_().mean(1, keepdim=True).sqrt_()], 2)

    @staticmethod
    def _members(encoder: Encoder) -> nn.ModuleList:
        members: nn.ModuleList = getattr(encoder, encoder.layers[0])
        return members

    def digest(self) -> str:
        """Return a digest of weights and normaliser, for the embedding cache's key."""
        sha = hashlib.sha256()
        for name, tensor in [*self.objective.state_dict().items(), ("mean", self.mean), ("std", self.std)]:
            sha.update(name.encode() + tensor.detach().cpu().numpy().tobytes())
        return sha.hexdigest()[:16]

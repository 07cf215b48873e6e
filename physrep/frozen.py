"""A frozen encoder with its normaliser: what probes and users take from a run."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from physrep.data.transforms import normalise, resize
from physrep.errors import UserError
from physrep.objectives.base import Objective


class Frozen(nn.Module):
    """An objective's `encode`, without gradients, behind the training split's normaliser.

    `meta` holds channels, mean, std (of the fields, [C]), frames, grid (cells of a clip before resizing), size (after
    it, or None), targets, theta_mean, theta_std, the fingerprint of the data and the hash of the run's config.
    """

    def __init__(self, objective: Objective, meta: dict[str, Any], step: int) -> None:
        super().__init__()
        self.objective = objective.eval().requires_grad_(False)
        self.meta, self.step = meta, step
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
        if normalised:
            return self.objective.encode(clip)
        clip = normalise(clip, self.mean, self.std)
        if self.meta["size"]:
            scales = [s / g for s, g in zip(self.meta["size"], self.meta["grid"], strict=True)]
            clip = resize(clip, [round(n * s) for n, s in zip(clip.shape[3:], scales, strict=True)])
        return self.objective.encode(clip)

    def digest(self) -> str:
        """Return a digest of weights and normaliser, for the embedding cache's key."""
        sha = hashlib.sha256()
        for name, tensor in [*self.objective.state_dict().items(), ("mean", self.mean), ("std", self.std)]:
            sha.update(name.encode() + tensor.detach().cpu().numpy().tobytes())
        return sha.hexdigest()[:16]

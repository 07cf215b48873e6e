"""The trained heads; each starts from a last layer of zeros, so from the prediction of the mean.

Their weights may have a leading axis of K copies (`torch.func.functional_call`), and predictions then have it, too:
x [B, ...] -> [K, B, P].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def last(width: int, outputs: int) -> nn.Linear:
    """Make a linear layer [.., width] -> [.., outputs] whose weights and biases are zero."""
    layer = nn.Linear(width, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def through(x: Tensor, *layers: nn.Module) -> Tensor:
    """Map x [B, I] or [K, B, I] by layers one after the other, by their K copies where weights have that axis."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            x = (layer.weight @ x.mT).mT + layer.bias.unsqueeze(-2)  # the gradient comes in the weight's own layout
        elif isinstance(layer, nn.LayerNorm):
            x = F.layer_norm(x, x.shape[-1:], eps=layer.eps) * layer.weight.unsqueeze(-2) + layer.bias.unsqueeze(-2)
        else:
            x = layer(x)
    return x


class LinearHead(nn.Module):
    """An affine map of pooled features [B, F] -> [B, P]."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.out = last(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map pooled features [B, F] to parameters [B, P]."""
        return through(x, self.out)


class MLPHead(nn.Module):
    """One hidden layer on pooled features [B, F] -> [B, P]."""

    def __init__(self, width: int, outputs: int, hidden: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), last(hidden, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map pooled features [B, F] to parameters [B, P]."""
        return through(x, *self.layers)


class AttentiveHead(nn.Module):
    """One learned query attends to the tokens [B, N, D]; a residual MLP and a linear layer follow. -> [B, P]

    With mlp_ratio=12 it is the head of the paper (arXiv 2603.13227): 445,314 weights at D = 128 and P = 2. The number
    of attention heads is the largest divisor of D that does not exceed `heads`. A single token gets all the attention,
    which leaves the MLP. Tokens are normalised first, unless they come `normalised`, by F.layer_norm.
    """

    def __init__(
        self, width: int, outputs: int, heads: int = 8, mlp_ratio: float = 4.0, normalised: bool = False
    ) -> None:
        super().__init__()
        self.normalised = normalised
        self.heads = next(n for n in range(heads, 0, -1) if width % n == 0)
        self.query = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02))
        self.norm = nn.LayerNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        hidden = int(mlp_ratio * width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.out = last(width, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens [B, N, D] to parameters [B, P].

        One query allows keys and values to be folded into it: q.(W x + b) = (W'q).x + q.b, and the weighted mean of
        values is the value of the weighted mean. So no layer but the fixed normalisation runs over the tokens, where
        copies of the head are further attention heads.
        """
        x = tokens if self.normalised else F.layer_norm(tokens, tokens.shape[-1:], eps=self.norm.eps)
        scale, shift, asked = (w.unsqueeze(-2) for w in (self.norm.weight, self.norm.bias, self.query))
        parts = self.heads, tokens.shape[-1] // self.heads
        query = through(asked, self.q).unflatten(-1, parts) * parts[1] ** -0.5  # [..., 1, heads, D / heads]
        folded = torch.einsum("...ohd,...hdf->...hf", query, self.k.weight.unflatten(-2, parts)) * scale
        offset = (query * through(shift, self.k).unflatten(-1, parts)).sum((-3, -1))
        attention = F.linear(x, folded.flatten(0, -2), offset.flatten()).softmax(1)  # [B, N, copies and heads]
        mixed = (attention.mT @ x).unflatten(1, folded.shape[:-1])
        value = torch.einsum("b...hf,...hdf->...bhd", mixed, (self.v.weight * scale).unflatten(-2, parts))
        y = asked + value.flatten(-2) + through(shift, self.v)
        return through(y + through(y, *self.mlp), self.out)

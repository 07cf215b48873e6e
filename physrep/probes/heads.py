"""The trained heads; each starts from a last layer of zeros, so from the prediction of the mean."""

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


class LinearHead(nn.Module):
    """An affine map of pooled features [B, F] -> [B, P]."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.out = last(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map pooled features [B, F] to parameters [B, P]."""
        theta: Tensor = self.out(x)
        return theta


class MLPHead(nn.Module):
    """One hidden layer on pooled features [B, F] -> [B, P]."""

    def __init__(self, width: int, outputs: int, hidden: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), last(hidden, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map pooled features [B, F] to parameters [B, P]."""
        theta: Tensor = self.layers(x)
        return theta


class AttentiveHead(nn.Module):
    """One learned query attends to the tokens [B, N, D]; a residual MLP and a linear layer follow. -> [B, P]

    With mlp_ratio=12 it is the head of the paper (arXiv 2603.13227): 445,314 weights at D = 128 and P = 2. The number
    of attention heads is the largest divisor of D that does not exceed `heads`. A single token gets all the attention,
    which leaves the MLP.
    """

    def __init__(self, width: int, outputs: int, heads: int = 8, mlp_ratio: float = 4.0) -> None:
        super().__init__()
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
        values is the value of the weighted mean. So no layer but the fixed normalisation runs over the tokens.
        """
        width = tokens.shape[-1]
        x = F.layer_norm(tokens, (width,), eps=self.norm.eps)
        query = self.q(self.query).view(self.heads, -1) * (width // self.heads) ** -0.5
        folded = torch.einsum("hd,hdf->hf", query, self.k.weight.view(self.heads, -1, width))
        offset = (query * self.k(self.norm.bias).view(self.heads, -1)).sum(1)
        attention = F.linear(x, folded * self.norm.weight, offset).transpose(1, 2).softmax(dim=-1)  # [B, heads, N]
        mixed = attention @ x * self.norm.weight + self.norm.bias
        value = torch.einsum("bhf,hdf->bhd", mixed, self.v.weight.view(self.heads, -1, width)).flatten(1) + self.v.bias
        y = self.query + value
        theta: Tensor = self.out(y + self.mlp(y))
        return theta

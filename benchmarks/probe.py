"""Seconds of the whole probe suite on cached embeddings beside 25 epochs of one plain attentive probe.

`make bench` or `python -m benchmarks.probe`. The suite: ridge, kNN, and linear, MLP and attentive heads at eight
learning rates each, 30 epochs, validated after every one. Plain: torch's attention, one learning rate, a DataLoader
over a TensorDataset, float32, no validation; timed for an epoch before and after each of the suite's probes.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from physrep.probes.closed_form import KNN, Ridge
from physrep.probes.features import Features, device
from physrep.probes.module import MLP, Attentive, Linear

ROWS, TOKENS, WIDTH, BATCH, EPOCHS = 10_000, 196, 128, 64, 25
LRS = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2)


class Plain(nn.Module):
    """One query, attention over all tokens, a residual MLP and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(0.02 * torch.randn(1, 1, WIDTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 8, batch_first=True)
        self.mlp = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )
        self.out = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        query = self.query.expand(len(x), -1, -1)
        y = query + self.attention(query, x, x, need_weights=False)[0]
        return self.out(y + self.mlp(y)).squeeze(1)


def features(rows: int) -> Features:
    """Tokens of which each holds the parameters, under noise."""
    theta = torch.randn(rows, 2)
    law = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(1))
    tokens = torch.stack([torch.randn(TOKENS, WIDTH) + 0.1 * row for row in theta @ law]).half()
    return Features(tokens, theta, torch.arange(rows)).to(device())


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    torch.manual_seed(0)
    train, valid = features(ROWS), features(1_000)
    where = train.tokens.device
    loader = DataLoader(TensorDataset(train.tokens.float().cpu(), train.theta.cpu()), batch_size=BATCH, shuffle=True)
    head = Plain().to(where)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)

    def epoch() -> None:
        for x, theta in loader:
            optimizer.zero_grad()
            (head(x.to(where)) - theta.to(where)).square().mean().backward()
            optimizer.step()

    trained = {"linear": Linear(lrs=LRS), "mlp": MLP(lrs=LRS), "attentive": Attentive(lrs=LRS)}
    print(f"{where}, {torch.get_num_threads()} threads, {ROWS:,} embeddings of {TOKENS} x {WIDTH}, half precision")
    plain, ours = [seconds(epoch)], 0.0
    for name, probe in {"ridge": Ridge(), "knn": KNN(), **trained}.items():
        took = seconds(lambda: probe.fit(train, valid)(valid))  # noqa: B023
        plain.append(seconds(epoch))
        ours += took
        print(f"{name:10s} {took:7.1f} s", flush=True)
    theirs = EPOCHS * sorted(plain)[len(plain) // 2]
    print(f"all of it  {ours:7.1f} s")
    print(f"{EPOCHS} plain   {theirs:7.1f} s  ({theirs / EPOCHS:.2f} s an epoch, the median of {len(plain)})")
    print(f"ratio {ours / theirs:.2f}; the bound is 1")


if __name__ == "__main__":
    main()

import math

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from physrep.probes.heads import AttentiveHead, LinearHead, MLPHead


def weights(module):
    return sum(w.numel() for w in module.parameters())


def shake(head):
    """Give every weight a random value, as after training."""
    generator = torch.Generator().manual_seed(0)
    for w in head.parameters():
        w.data = 0.5 * torch.randn(w.shape, generator=generator)
    return head


def naive(head, tokens):
    """Cross-attention with keys and values of every token, one window and one attention head at a time."""
    width = tokens.shape[-1]
    part = width // head.heads
    out = []
    for window in tokens:
        x = F.layer_norm(window, (width,), head.norm.weight, head.norm.bias)
        query, keys, values = head.q(head.query), head.k(x), head.v(x)
        pooled = []
        for h in range(head.heads):
            s = slice(h * part, (h + 1) * part)
            score = torch.stack([query[s] @ key[s] / math.sqrt(part) for key in keys])
            share = score.exp() / score.exp().sum()
            pooled.append(sum(a * v[s] for a, v in zip(share, values, strict=True)))
        y = head.query + torch.cat(pooled)
        out.append(head.out(y + head.mlp(y)))
    return torch.stack(out)


@pytest.mark.parametrize(
    ("width", "heads", "used", "tokens"), [(16, 4, 4, 7), (12, 8, 6, 5), (7, 8, 7, 3), (16, 8, 8, 1)]
)
def test_attention_equals_a_naive_loop(width, heads, used, tokens):
    head = shake(AttentiveHead(width, 2, heads)).double()
    assert head.heads == used
    x = torch.randn(3, tokens, width, dtype=torch.float64)
    torch.testing.assert_close(head(x), naive(head, x))


def test_gradients_equal_those_of_the_naive_loop():
    head = shake(AttentiveHead(8, 2, 2)).double()
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    ours = torch.autograd.grad(head(x).square().sum(), list(head.parameters()))
    theirs = torch.autograd.grad(naive(head, x).square().sum(), list(head.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_attentive_head_has_the_weights_of_the_paper():
    head = AttentiveHead(128, 2, heads=8, mlp_ratio=12)
    assert weights(head) == 445_314
    assert head(torch.randn(2, 196, 128)).shape == (2, 2)


def test_a_prime_width_has_one_attention_head():
    assert AttentiveHead(157, 2, heads=8).heads == 1


def test_token_order_does_not_matter_but_tokens_do():
    head = shake(AttentiveHead(8, 2))
    x = torch.randn(2, 6, 8)
    torch.testing.assert_close(head(x.flip(1)), head(x))
    assert not torch.allclose(head(x[:, :3]), head(x))


@pytest.mark.parametrize(
    ("head", "x", "count"),
    [
        (LinearHead(6, 2), torch.randn(5, 6), 14),
        (MLPHead(6, 2, hidden=10), torch.randn(5, 6), 70 + 22),
        (AttentiveHead(8, 2), torch.randn(5, 4, 8), 8 + 16 + 3 * 72 + 16 + 8 * 32 + 32 + 32 * 8 + 8 + 18),
    ],
)
def test_heads_start_at_the_mean_and_use_every_weight(head, x, count):
    assert weights(head) == count
    assert head(x).shape == (5, 2) and not head(x).any()
    shake(head)(x).square().sum().backward()
    assert all(w.grad is not None for w in head.parameters())


@pytest.mark.parametrize(
    ("head", "x"),
    [
        (LinearHead(6, 2), torch.randn(5, 6)),
        (MLPHead(6, 2, hidden=10), torch.randn(5, 6)),
        (AttentiveHead(8, 3, heads=4), torch.randn(5, 7, 8)),
        (AttentiveHead(8, 2), torch.randn(5, 1, 8)),
    ],
)
def test_weights_of_copies_give_the_predictions_of_each_copy(head, x):
    """As many copies as rows, so that no axis can be taken for another unnoticed."""
    head, x = head.double(), x.double()
    copies = [{name: torch.randn_like(w) for name, w in head.named_parameters()} for _ in range(5)]
    together = functional_call(head, {name: torch.stack([copy[name] for copy in copies]) for name in copies[0]}, x)
    assert together.shape[:2] == (5, 5)
    torch.testing.assert_close(together, torch.stack([functional_call(head, copy, x) for copy in copies]))

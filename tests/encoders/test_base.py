"""What encoders share: blocks that are computed again in the backward pass instead of kept."""

import pytest
import torch

from physrep.config import build, compose

CASES = {"conv_tiny": 3, "vit_nano": 4, "avit_nano": 4}


@pytest.mark.parametrize("name", CASES)
def test_recomputed_blocks_have_the_same_gradient_and_keep_less(name):
    clip, found, kept = torch.randn(2, 3, 8, 32, 32), [], []
    for recompute in (0, CASES[name]):
        torch.manual_seed(0)
        encoder = build(compose([f"encoder={name}"]).encoder, channels=3, recompute=recompute)
        held = []

        def pack(x, held=held):
            held.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            y = encoder(clip)
        y.square().sum().backward()
        found.append([y.detach(), *(w.grad for w in encoder.parameters() if w.grad is not None)])
        kept.append(sum(held))
    assert len(found[0]) == len(found[1])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)
    assert kept[1] < 0.8 * kept[0]

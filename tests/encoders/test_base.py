"""What encoders share: blocks that are computed again in the backward pass instead of kept."""

import pytest
import torch

from physrep.config import build, compose
from physrep.encoders.base import drop_rates
from physrep.errors import UserError

CASES = {"conv_tiny": 3, "vit_nano": 4, "avit_nano": 2}


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


def test_stochastic_depth_rises_to_its_rate():
    assert drop_rates(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert drop_rates(0.3, 1) == [0.0]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["encoder=vit_nano", "encoder.drop_path=1.0"], r"encoder\.drop_path=1\.0: give 0 or more and less than 1"),
        (["encoder=avit_nano", "encoder.drop_path=-0.1"], r"encoder\.drop_path=-0\.1: give 0 or more and less than 1"),
        (["encoder=vit_nano", "encoder.patch=0"], r"encoder: tubelet=4 and patch=\[0, 0\] must be 1 or more"),
        (["encoder=vit_nano", "encoder.tubelet=0"], r"encoder: tubelet=0 and patch=\[8, 8\] must be 1 or more"),
        (["encoder=conv_tiny", "encoder.kernels=[[6,6],[7,7],[7,7]]"], r"encoder\.kernels: \[6, 6\] has no middle"),
        (["encoder=conv_tiny", "encoder.stem=[0,4,4]"], r"encoder\.stem: \[0, 4, 4\]: must be 1 or more each"),
    ],
)
def test_sizes_that_make_no_encoder_are_named(argv, said):
    with pytest.raises(UserError, match=said) as error:
        build(compose(argv).encoder, channels=3)
    assert "\n" not in str(error.value)

"""The untrained control: nothing pretrained poses as it."""

import pytest
import torch

from physrep.encoders.vit import VisionTransformer
from physrep.errors import UserError
from physrep.objectives.random import Random


def test_pretrained_weights_are_refused(tmp_path):
    sizes = {"width": 24, "depth": 1, "heads": 2, "patch": 4}
    path = tmp_path / "weights.pt"
    torch.save(VisionTransformer(3, positions="sinusoid", **sizes).state_dict(), path)
    encoder = VisionTransformer(3, positions="sinusoid", weights=str(path), **sizes)
    with pytest.raises(UserError, match="objective=random is the untrained control"):
        Random(encoder)
    assert not Random(VisionTransformer(3, **sizes)).trains

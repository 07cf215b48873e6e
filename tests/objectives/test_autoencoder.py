"""Reconstruction: the decoder's cells, the loss by a naive loop, any encoder."""

import pytest
import torch
from torch import nn

from physrep.encoders.base import Encoder
from physrep.encoders.conv import ConvEncoder
from physrep.encoders.vit import VisionTransformer, cells
from physrep.errors import UserError
from physrep.objectives.autoencoder import Autoencoder
from physrep.objectives.decoder import Decoder, footprint, join, nmse


def conv(channels=3):
    return ConvEncoder(channels, (8, 16), (1, 1), (4, 4, 4), ((4, 4, 4), (2, 2, 2)), ((3, 3, 3), (3, 3)), 0.1)


def vit(channels=3):
    return VisionTransformer(channels, width=24, depth=2, heads=4, patch=[4, 8], tubelet=2)


def batch(clip):
    return {"clip": clip, "theta": torch.zeros(len(clip), 2), "trajectory": torch.arange(len(clip))}


def test_nmse_is_the_error_in_units_of_the_variance_by_sample_and_channel():
    x, y = torch.randn(2, 3, 4, 5, 6), torch.randn(2, 3, 4, 5, 6) * torch.tensor([0.01, 1, 30]).view(3, 1, 1, 1)
    total = 0.0
    for b in range(2):
        for c in range(3):
            mean = y[b, c].sum() / 120
            variance = (y[b, c] - mean).square().sum() / 120
            total += (x[b, c] - y[b, c]).square().sum() / 120 / (variance + 0.02) / 6
    torch.testing.assert_close(nmse(x, y, 0.02), total)
    means = y.mean((2, 3, 4), keepdim=True).expand_as(y)
    assert float(nmse(means[:, 1:], y[:, 1:], 0.0)) == pytest.approx(1)
    assert float(nmse(means[:, :1], y[:, :1], 0.01)) < 0.02
    assert nmse(y.bfloat16(), y.bfloat16(), 0.1).dtype == torch.float32


def test_join_undoes_cells():
    clip = torch.randn(2, 3, 4, 6, 10)
    assert torch.equal(join(cells(clip, (2, 3, 5))), clip)


def test_blocks_let_neighbours_agree():
    decoder = Decoder(5, 3, (2, 4, 8), hidden=6, depth=2)
    features = torch.randn(1, 5, 1, 1, 6, requires_grad=True)
    decoder(features)[..., :8].sum().backward()
    assert features.grad.abs().sum((0, 1, 2, 3)).gt(0).tolist() == [True] * 3 + [False] * 3


def test_a_decoded_cell_lies_where_its_feature_lies():
    torch.manual_seed(0)
    decoder = Decoder(5, 3, (2, 4, 8), hidden=6, depth=0)
    features = torch.randn(2, 5, 2, 3, 2)
    fields = decoder(features)
    assert fields.shape == (2, 3, 4, 12, 16)
    torch.testing.assert_close(decoder(features[..., 1:, 1:])[0, :, :, :4, :8], fields[0, :, :, 4:8, 8:])
    x = decoder.norm(decoder.narrow(features)[1, :, 1, 2, 0])
    expected = decoder.head(x).view(3, 2, 4, 8)
    torch.testing.assert_close(fields[1, :, 2:4, 8:12, :8], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("encoder", "frames", "cell"),
    [(conv, 8, (8, 8, 8)), (conv, 16, (8, 8, 8)), (vit, 8, (2, 4, 8)),
     (lambda: VisionTransformer(3, 16, 1, 2, patch=14), 4, (2, 14, 14)),
     (lambda: VisionTransformer(3, 16, 1, 2, patch=12), 4, (2, 12, 12)),
     (lambda: ConvEncoder(3, (4, 8, 8, 8, 8), (1,) * 5), 16, (16, 16, 16))],
)  # fmt: skip
def test_footprint_is_found_by_trying(encoder, frames, cell):
    made = encoder()
    before = {k: v.clone() for k, v in made.state_dict().items()}
    assert footprint(made, 3, frames, "autoencoder") == cell
    assert all(torch.equal(v, before[k]) for k, v in made.state_dict().items())
    assert {w.device.type for w in made.parameters()} == {"cpu"}


@pytest.mark.parametrize("encoder", [conv, vit])
def test_loss_is_the_nmse_of_what_is_decoded_from_the_features(encoder):
    torch.manual_seed(0)
    objective = Autoencoder(encoder(), 3, 8, floor=0.05)
    clip = torch.randn(2, 3, 8, 16, 32)
    decoded = objective.decoder(objective.encoder(clip))
    assert decoded.shape == clip.shape
    torch.testing.assert_close(objective.losses(batch(clip))["loss"], nmse(decoded, clip, 0.05))


@pytest.mark.parametrize("encoder", [conv, vit])
def test_a_simple_clip_is_reconstructed(encoder):
    torch.manual_seed(0)
    objective = Autoencoder(encoder(), 3, 8)
    phase = torch.rand(8, 3, 1, 1, 1)
    x = torch.arange(32) / 32
    clip = torch.sin(2 * torch.pi * (x + phase)).expand(8, 3, 8, 16, 32).contiguous()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    for _ in range(60):
        loss = objective.losses(batch(clip))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.3


class Pooled(Encoder):
    """One vector for a whole clip."""

    def __init__(self):
        super().__init__()
        self.width, self.layer = 4, nn.Conv3d(3, 4, 1)

    def forward(self, clip):
        return self.layer(clip).mean((2, 3, 4), keepdim=True)


def test_an_encoder_without_a_map_is_refused_and_so_are_frames_that_do_not_fit():
    with pytest.raises(UserError, match=r"objective=autoencoder: .*Pooled does not make; set encoder=conv_tiny"):
        Autoencoder(Pooled(), 3, 8)
    with pytest.raises(UserError, match=r"do not divide a clip of \[6, 64, 64\]"):
        Autoencoder(conv(), 3, 6)
    with pytest.raises(UserError, match=r"objective\.floor=-1: must be more than 0"):
        Autoencoder(conv(), 3, 8, floor=-1)

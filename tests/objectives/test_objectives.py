"""Every objective of conf/objective: builds, steps, learns, touches every weight, draws by (seed, epoch, batch)."""

from pathlib import Path

import pytest
import torch

from physrep.config import build, compose
from physrep.data.shear_flow import ShearFlow
from physrep.encoders.avit import AViT
from physrep.encoders.base import Encoder, tokens
from physrep.encoders.conv import ConvEncoder
from physrep.encoders.vit import VisionTransformer
from physrep.errors import UserError
from physrep.frozen import Frozen
from physrep.losses import vicreg
from physrep.objectives.base import Objective
from physrep.objectives.jepa import Jepa
from physrep.objectives.views import Views, pool
from physrep.signatures import ALLOWED, signature_of

NAMES = sorted(p.stem for p in Path("conf/objective").glob("*.yaml") if p.stem != "random")  # which learns nothing
FRAMES = {"one": 8, "frame": 9, "next": 16, "pair": 16}


def encoder(channels: int = 4) -> ConvEncoder:
    return ConvEncoder(channels, (8, 16), (1, 1), (4, 4, 4), ((4, 4, 4), (2, 2, 2)), ((3, 3, 3), (3, 3)), 0.1)


def vit(channels: int = 4) -> VisionTransformer:
    return VisionTransformer(channels, width=32, depth=2, heads=4, patch=4, tubelet=2)


def avit(channels: int = 4) -> AViT:
    return AViT(channels, (True, True), 16, 2, 2, (4, 2, 1), scale=0.1)


# The objectives that refuse a convolutional encoder: what they take, and its tokens [N, D] of 8 frames of 16 x 16 cells
ENCODERS = {
    "videomae": (vit, (64, 32)),
    "masked_latent": (vit, (64, 32)),
    "masked_latent_vicreg": (vit, (64, 32)),
    "mpp": (avit, (4, 16)),
}
TOKENS = {"disco": (1, 16), "disco_full": (1, 16)}  # of those that pool a convolutional encoder's
SMALLER = {"disco_full": {"head": 16, "start": 4, "levels": 2, "steps": 1}}  # for 123 M weights


def make(name: str, channels: int = 4, **options):
    torch.manual_seed(0)
    node = compose([f"objective={name}"]).objective
    facts = {"channels": channels, "frames": 8, "parameters": 2, "periodic": [True, True]}
    asked = signature_of(node._target_, ALLOWED, name)
    told = {key: value for key, value in facts.items() if key in asked}
    made, _ = ENCODERS.get(name, (encoder, ()))
    return build(node, encoder=made(channels), seed=0, **told, **SMALLER.get(name, {}), **options)


@pytest.mark.parametrize("name", NAMES)
def test_learns_and_touches_every_weight(datasets, name):
    objective = make(name)
    data = ShearFlow("shear_flow_tiny", root=str(datasets), frames=8, batch_size=16)
    data.clips = objective.clips
    data.setup("fit")
    batches = [data.prepare_batch(raw, augment=True) for raw in data.train_dataloader()][:4]
    assert batches[0]["clip"].shape[2] == FRAMES[objective.clips]
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    history = []
    for step in range(30):
        terms = objective.losses(batches[step % len(batches)])
        optimizer.zero_grad()
        terms["loss"].backward()
        if step == 0:
            trained = {n: w for n, w in objective.named_parameters() if w.requires_grad}  # all but a teacher's
            assert all(w.grad is not None and torch.isfinite(w.grad).all() for w in trained.values())
            dead = [n for n, w in trained.items() if not w.grad.abs().max() > 0]
            assert not dead
        optimizer.step()
        history.append(terms["loss"].item())
    first, last = sum(history[:4]), sum(history[-4:])
    assert first - last > 0.1 * abs(first)


@pytest.mark.parametrize("channels", [1, 4, 11])
@pytest.mark.parametrize("name", NAMES)
def test_any_number_of_channels_and_bf16(name, channels):
    objective = make(name, channels)
    clip = torch.randn(4, channels, FRAMES[objective.clips], 16, 16)
    batch = {"clip": clip, "theta": torch.zeros(4, 2), "trajectory": torch.arange(4)}
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective.losses(batch)["loss"]
        loss.backward()
    assert torch.isfinite(loss)
    assert loss.dtype == torch.float32
    _, shape = ENCODERS.get(name, (encoder, TOKENS.get(name, (4, 16))))
    assert objective.encode(clip[:, :, :8]).shape == (4, *shape)


@pytest.mark.parametrize("name", NAMES)
def test_flat_and_still_fields_have_a_finite_loss_and_gradient(name):
    objective = make(name)
    clip = torch.randn(4, 4, FRAMES[objective.clips], 16, 16)
    clip[0] = 0.0  # nothing there
    clip[1] = clip[1, :, :1, :1, :1]  # each channel one value
    clip[2, 1] = clip[2, 1, :, :1, :1]  # a channel flat in space
    clip[3] = clip[3, :, :1]  # no motion
    batch = {"clip": clip, "theta": torch.zeros(4, 2), "trajectory": torch.arange(4)}
    loss = objective.losses(batch)["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(w.grad).all() for w in objective.parameters() if w.grad is not None)


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_gives_the_same_tokens_again(name, tmp_path):
    objective, other = make(name), make(name)
    clip = torch.randn(4, 4, FRAMES[objective.clips], 16, 16)
    batch = {"clip": clip, "theta": torch.zeros(4, 2), "trajectory": torch.arange(4)}
    optimizer = torch.optim.AdamW(objective.parameters(), lr=0.1)
    objective.losses(batch)["loss"].backward()
    optimizer.step()
    if teacher := getattr(objective, "teacher", None):
        teacher.update_parameters(getattr(objective, "student", objective.encoder))
    torch.save(objective.state_dict(), tmp_path / "last.ckpt")
    tokens_of = [each.eval().encode(clip[:, :, :8]) for each in (objective, other)]
    assert not torch.equal(*tokens_of)
    other.load_state_dict(torch.load(tmp_path / "last.ckpt", weights_only=True), strict=True)
    torch.testing.assert_close(other.encode(clip[:, :, :8]), tokens_of[0], rtol=0, atol=0)


@pytest.mark.parametrize("name", ENCODERS)
def test_what_needs_another_encoder_refuses_a_convolutional_one(name, monkeypatch):
    monkeypatch.delitem(ENCODERS, name)
    with pytest.raises(UserError, match=r"^objective=\w+: .*; set encoder="):
        make(name)


def test_jepa_is_the_published_formula():
    """Encoder on both clips, predictor on the first, VICReg 2/40/2 over shuffled rows in five chunks."""
    objective = make("jepa")
    clip = torch.randn(3, 4, 16, 16, 16)
    batch = {"clip": clip, "theta": torch.zeros(3, 2), "trajectory": torch.arange(3)}
    terms = objective.losses(batch)
    f, g = objective.encoder, objective.predictor
    x, y = tokens(g(f(clip[:, :, :8]))).reshape(-1, 16), tokens(f(clip[:, :, 8:])).reshape(-1, 16)
    order = torch.randperm(12, generator=objective.generator())
    total = 0.0
    for rows in (order[:3], order[3:6], order[6:9], order[9:12]):
        t = vicreg(x[rows], y[rows])
        total += (2 * t["sim"] + 40 * t["std"] + 2 * t["cov"]) / 4
    assert len(order.chunk(5)) == 4
    torch.testing.assert_close(terms["loss"], total)
    sizes = [len(c) for c in torch.arange(8 * 196).chunk(5)]
    assert sizes == [314, 314, 314, 314, 312]


def test_jepa_has_gradients_through_both_branches():
    objective = make("jepa", sim=1.0, std=0.0, cov=0.0)
    now = torch.randn(2, 4, 8, 16, 16, requires_grad=True)
    later = torch.randn(2, 4, 8, 16, 16, requires_grad=True)
    batch = {"clip": torch.cat([now, later], 2), "theta": torch.zeros(2, 2), "trajectory": torch.arange(2)}
    objective.losses(batch)["loss"].backward()
    assert now.grad.abs().max() > 0
    assert later.grad.abs().max() > 0


def test_published_jepa_counts():
    objective = Jepa(ConvEncoder(4))
    assert sum(w.numel() for w in objective.parameters()) == 3_268_592
    assert sum(w.numel() for w in Jepa(ConvEncoder(11)).parameters()) == 3_270_384


def test_views_is_symmetric_and_pools_mean_and_std():
    x = torch.randn(3, 7, 5)
    assert torch.allclose(pool(x)[:, :5], x.mean(1))
    assert torch.allclose(pool(x)[:, 5:], x.std(1, correction=0), atol=1e-4)
    objective = Views(encoder())
    clip = torch.randn(6, 4, 16, 16, 16)
    batch = {"clip": clip, "theta": torch.zeros(6, 2), "trajectory": torch.arange(6)}
    other = batch | {"clip": clip.roll(8, 2)}
    torch.testing.assert_close(objective.losses(batch)["loss"], objective.losses(other)["loss"])


def test_draws_are_a_function_of_seed_epoch_batch():
    objective = make("jepa")

    def draw(batch, seed=0):
        objective._batch, objective.seed = batch, seed
        return torch.rand(3, generator=objective.generator()).tolist()

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert draw(1) != draw(1, seed=1)


@pytest.mark.parametrize("name", ["autoencoder", "next_frame"])
def test_fields_are_not_decoded_from_an_encoder_that_takes_their_scale_away(name, monkeypatch):
    monkeypatch.setitem(ENCODERS, name, (avit, ()))
    with pytest.raises(UserError, match=rf"objective={name}: .* AViT normalises each clip; set objective=mpp"):
        make(name)


@pytest.mark.parametrize(
    ("name", "option"),
    [("jepa", "chunks"), ("views_ntxent", "temperature"), ("views_sigreg", "slices"), ("lejepa", "slices")],
)
def test_options_that_must_be_positive_are_refused_in_one_line(name, option):
    with pytest.raises(UserError, match=rf"objective\.{option}=0.*: must be more than 0"):
        make(name, **{option: 0})


@pytest.mark.parametrize(("option", "value"), [("lr", -1.0), ("weight_decay", -0.1), ("warmup", -10)])
def test_a_plan_below_zero_is_refused(option, value):
    with pytest.raises(UserError, match=rf"objective\.{option}={value}: must be 0 or more"):
        Objective(torch.nn.Identity(), **{option: value})


@pytest.mark.parametrize("name", ["views", "lejepa"])
def test_one_sample_has_nothing_to_be_compared_with(name):
    encoder = build(compose(["encoder=conv_tiny"]).encoder, channels=2)
    objective = build(compose([f"objective={name}"]).objective, encoder=encoder, seed=0).train()
    batch = {"clip": torch.randn(1, 2, 16, 32, 32), "theta": torch.zeros(1, 2), "trajectory": torch.zeros(1)}
    with pytest.raises(UserError, match=r"data\.batch_size=1: samples are compared within a batch; raise it"):
        objective.losses(batch)


@pytest.mark.parametrize("name", NAMES)
def test_layers_can_be_read_beside_the_output(name):
    """One token a clip: mean and deviation, channel by channel, of what the modules return that `encode` runs."""
    objective = make(name)
    for weight in objective.encoder.parameters():
        weight.data.add_(0.1 * torch.randn_like(weight))  # away from a teacher's
    frozen = Frozen(objective, {"channels": list("abcd"), "mean": [0.0] * 4, "std": [1.0] * 4}, step=0)
    clip, returned, hooks = torch.randn(3, 4, 8, 16, 16), list[torch.Tensor](), []
    for used in (m for m in objective.modules() if isinstance(m, Encoder)):
        for module in getattr(used, used.layers[0]):
            hooks.append(module.register_forward_hook(lambda _, x, y: returned.append(y)))
    output = frozen.encode(clip, normalised=True)
    for hook in hooks:
        hook.remove()
    with frozen.tapped(frozen.layers()) as seen:
        torch.testing.assert_close(frozen.encode(clip, normalised=True), output)
    assert list(seen) == frozen.layers() == ["1", "2"]
    for token, y in zip(seen.values(), returned, strict=True):
        rows = y.movedim(objective.encoder.layers[1], -1)
        for i, each in enumerate(rows.unflatten(0, (len(clip), -1))):
            values = each.reshape(-1, rows.shape[-1])
            want = torch.cat([values.mean(0), values.std(0, correction=0)])
            torch.testing.assert_close(token[i, 0], want, rtol=1e-4, atol=1e-5)


def test_layers_of_an_encoder_used_by_parts_or_twice():
    class Parts(Views):
        def encode(self, clip):
            return self.encoder.attend(self.encoder.embed(clip))

    class Twice(Views):
        def encode(self, clip):
            return tokens(self.encoder(clip) + self.encoder(clip.flip(2)))

    meta = {"channels": list("abcd"), "mean": [0.0] * 4, "std": [1.0] * 4}
    frozen = Frozen(Parts(vit()), meta, step=0)
    for clips in (3, 2):
        with frozen.tapped(["1"]) as seen:
            frozen.encode(torch.randn(clips, 4, 8, 16, 16), normalised=True)
        assert seen["1"].shape == (clips, 1, 64)
    twice = Frozen(Twice(vit()), meta, step=0)
    with twice.tapped(["1"]), pytest.raises(UserError, match="layers: Twice passes layer 1 twice for a clip"):
        twice.encode(torch.randn(2, 4, 8, 16, 16), normalised=True)

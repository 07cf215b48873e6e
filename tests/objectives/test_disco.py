"""DISCO: weights for each sample, the integrator, the likelihood, and that it learns to beat persistence."""

import copy

import numpy as np
import pytest
import torch

from physrep.data.shear_flow import ShearFlow
from physrep.encoders.base import tokens
from physrep.encoders.conv import ConvEncoder
from physrep.encoders.operator_unet import OperatorUNet
from physrep.errors import UserError
from physrep.objectives.disco import Disco, bounded, rk4


def make(channels=3, periodic=(True, True), **options):
    torch.manual_seed(0)
    encoder = ConvEncoder(channels, (8, 16), (1, 1), (4, 4, 4), ((4, 4, 4), (2, 2, 2)), ((3, 3, 3), (3, 3)), 0.1)
    small = {"head": 12, "start": 4, "levels": 2, "steps": 2}
    return Disco(encoder, channels, list(periodic), **small | options)


def batch_of(clip):
    return {"clip": clip, "theta": torch.zeros(len(clip), 2), "trajectory": torch.arange(len(clip))}


def silence(objective):
    for generator in objective.generators.values():
        torch.nn.init.zeros_(generator.weight)
        torch.nn.init.zeros_(generator.bias)
    return objective


def test_generators_are_of_the_published_sizes():
    for channels, periodic, adapters in [(11, (True, True), 1_584), (4, (True, True), 576), (4, (True, False), 648)]:
        objective = make(channels, periodic, start=8, levels=4, head=2)
        made = {group: generator.out_features for group, generator in objective.generators.items()}
        assert made == {"pointwise": 65_536, "kernels": 92_512, "adapters": adapters}


@pytest.mark.parametrize("periodic", [(True, True), (False, True)])
def test_each_sample_is_carried_by_its_own_operator(periodic):
    objective = make(periodic=periodic)
    with torch.no_grad():
        weights = objective.weights(3 * torch.randn(3, 16))
        states = torch.randn(3, 3, 16, 16)
        carried = objective.integrate(weights, states)
        for i, state in enumerate(states):
            operator = OperatorUNet(3, 4, 2, all(periodic))
            operator.load_state_dict({name: w[i] for name, w in weights.items()})
            torch.testing.assert_close(carried[i], rk4(operator, state[None], 2)[0], atol=1e-5, rtol=1e-4)
    assert (weights["first.weight"][0] - weights["first.weight"][1]).abs().max() > 1e-3


def test_rk4_is_of_fourth_order():
    """x' = A x with complex eigenvalues against the matrix exponential."""
    a = torch.tensor([[-0.5, 2.0], [-2.0, -0.1]], dtype=torch.float64)
    x = torch.tensor([1.0, -0.3], dtype=torch.float64)
    error = [float((rk4(lambda v: a @ v, x, n) - torch.linalg.matrix_exp(a) @ x).norm()) for n in (8, 16, 32)]
    assert error[0] / error[1] == pytest.approx(16, rel=0.1)
    assert error[1] / error[2] == pytest.approx(16, rel=0.05)


def test_rk4_one_step_is_the_textbooks():
    """x' = x^2, x(0) = 1/2, one step of one: the stages by hand."""
    a, x = 0.25, 0.5
    b = (x + a / 2) ** 2
    c = (x + b / 2) ** 2
    d = (x + c) ** 2
    assert float(rk4(torch.square, torch.tensor(x), 1)) == pytest.approx(x + (a + 2 * b + 2 * c + d) / 6)


def test_a_silent_generator_repeats_the_last_frame():
    objective = silence(make())
    clip = torch.randn(2, 3, 9, 16, 16)
    weights = objective.weights(objective.encode(clip[:, :, :8])[:, 0])
    assert all(not w.any() for w in weights.values())
    assert torch.equal(objective.integrate(weights, clip[:, :, 7]), clip[:, :, 7])
    terms = objective.losses(batch_of(clip))
    assert torch.equal(terms["loss"], terms["baseline"])


def test_weights_stay_within_twice_the_largest_of_a_first_initialisation():
    objective = make()
    limits = dict(zip(objective.shapes, objective.limits, strict=True))
    for name, limit in limits.items():
        fan_in = np.prod(objective.shapes[name][1:])  # of transposed kernels too, as PyTorch counts
        assert 0.8 / np.sqrt(fan_in) < float(limit) <= 1 / np.sqrt(fan_in)
    for name, w in objective.weights(1e4 * torch.randn(4, 16)).items():
        assert w.abs().max() <= 2 * limits[name]
        assert w.abs().max() > 1.9 * limits[name]
    scale = objective.limits.square().mean().sqrt()
    raw = torch.tensor([1e-4])
    torch.testing.assert_close(bounded(raw, limits["read.weight"], scale), raw * limits["read.weight"] / scale)


def test_loss_is_the_likelihood_of_the_next_frame_in_units_of_the_last():
    objective = make(floor=0.02)
    clip = 2 + 3 * torch.randn(2, 3, 9, 16, 16)
    with torch.no_grad():
        terms = objective.losses(batch_of(clip))
        last, future = clip[:, :, 7].double().numpy(), clip[:, :, 8].double().numpy()
        mean, std = last.mean((2, 3), keepdims=True), np.sqrt(last.var((2, 3), keepdims=True) + 0.02)
        state, target = (last - mean) / std, (future - mean) / std
        weights = objective.weights(objective.encode(clip[:, :, :8])[:, 0])
        predicted = objective.integrate(weights, torch.tensor(state).float()).double().numpy()
    variance = (future.var((2, 3), keepdims=True) + 0.02) / std**2

    def nll(x):
        return float((0.5 * (np.log(variance) + (x - target) ** 2 / variance)).mean())

    assert terms["loss"].item() == pytest.approx(nll(predicted), rel=1e-4)
    assert terms["baseline"].item() == pytest.approx(nll(state), rel=1e-4)
    nrmse = np.sqrt(((predicted - target) ** 2).mean((2, 3)) / variance[:, :, 0, 0]).mean()
    assert terms["nrmse"].item() == pytest.approx(float(nrmse), rel=1e-4)


def test_probes_get_one_token_of_a_clip():
    clip = torch.randn(2, 3, 8, 16, 16)
    plain = make()
    assert torch.equal(plain.encode(clip), tokens(plain.encoder(clip)).mean(1, keepdim=True))
    assert make(latent=5).encode(clip).shape == (2, 1, 5)


@pytest.mark.parametrize("periodic", [(True, True), (True, False)])
def test_gradients_reach_every_weight_and_there_are_no_others(periodic):
    objective = make(periodic=periodic, latent=6)
    objective.losses(batch_of(torch.randn(2, 3, 9, 16, 16)))["loss"].backward()
    assert all(w.grad is not None and w.grad.abs().max() > 0 for w in objective.parameters())
    assert {name for name, _ in objective.named_buffers()} == {"limits"}
    assert not any(w.is_meta for w in objective.state_dict().values())
    again = copy.deepcopy(objective)
    again.load_state_dict(objective.state_dict())


def test_flat_frames_have_a_finite_loss_and_gradient():
    clip = torch.randn(4, 3, 9, 16, 16)
    clip[0] = 0.3  # nothing happens
    clip[1, 1] = clip[1, 1, :, :1, :1]  # one field flat in space, changing in time
    clip[2, :, 7] = 1.0  # flat, then not
    clip[3, :, 8] = -1.0  # not flat, then flat
    objective = make()
    terms = objective.losses(batch_of(clip))
    terms["loss"].backward()
    assert all(torch.isfinite(v) for v in terms.values())
    assert all(torch.isfinite(w.grad).all() for w in objective.parameters())


def test_learns_to_beat_persistence(datasets):
    data = ShearFlow("shear_flow_tiny", root=str(datasets), frames=8, batch_size=16)
    data.clips = "frame"
    data.setup("fit")
    batches = [data.prepare_batch(raw, augment=True) for raw in data.train_dataloader()][:2]
    objective = make(4, head=64, steps=1)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    for step in range(30):
        terms = objective.losses(batches[step % 2])
        assert terms["loss"] > terms["baseline"] or step
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
    with torch.no_grad():
        for batch in batches:
            terms = objective.losses(batch)
            assert terms["loss"] < terms["baseline"]


def test_what_does_not_fit_is_said_in_one_line():
    for options, said in [
        ({"start": 6}, "objective.start=6: must be a multiple of 4"),
        ({"levels": 0}, "objective.levels=0: must be 1 or more"),
        ({"steps": 0}, "objective.steps=0"),
        ({"floor": 0.0}, "objective.floor=0.0"),
    ]:
        with pytest.raises(UserError, match=said):
            make(**options)
    clip = torch.zeros(1, 3, 8, 16, 8)
    with pytest.raises(UserError, match=r"objective.levels=4: .* multiples of 16, not \[16, 8\] \(H, W\)"):
        make(levels=4).encode(clip)
    assert make(levels=3).encode(clip).shape == (1, 1, 16)
    with pytest.raises(UserError, match=r"multiples of 8, 16 or more, not \[16, 8\]"):
        make(levels=3, periodic=(False, True)).encode(clip)

"""Two ranks with half a batch each, under DDP, have the loss and the gradient of one process with the whole batch."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from physrep.distributed import gather, mean, share, world
from physrep.encoders.conv import ConvEncoder
from physrep.losses import barlow_twins, directions, lejepa, nt_xent, vicreg, weigh
from physrep.objectives.jepa import Jepa

WORLD = 2
STATISTICS = {
    "vicreg": lambda x, y, owner: weigh(vicreg(x, y), sim=25, std=50, cov=1)["loss"],
    "barlow": lambda x, y, owner: weigh(barlow_twins(x, y), on=1, off=0.005)["loss"],
    "ntxent": lambda x, y, owner: nt_xent(x, y, owner, 0.5),
    "sigreg": lambda x, y, owner: weigh(lejepa(x, y, directions(4, 32, seed=0)), sim=1, sigreg=0.1)["loss"],
}


class Case(nn.Module):
    """A net with its loss, as DDP wants it: forward gives the loss of a batch."""

    def __init__(self, net: nn.Module, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.net, self.loss = net, loss

    def forward(self, *batch: Tensor) -> Tensor:
        return self.loss(self.net, *batch)


def cases() -> dict[str, tuple[Case, tuple[Tensor, ...]]]:
    """Every loss on gathered rows and on a rank's own, with the same weights and whole batch in every process."""
    torch.manual_seed(0)
    x, owner = torch.randn(12, 6), torch.tensor([0, 1, 2, 3, 4, 5, 0, 1, 8, 9, 10, 11])
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    batch = x, x + 0.3 * torch.randn(12, 6), owner
    made = {}
    for name, loss in STATISTICS.items():
        made[name] = Case(net, lambda f, x, y, o, loss=loss: loss(gather(f(x)), gather(f(y)), gather(o))), batch
        made[f"{name} apart"] = Case(net, lambda f, x, y, o, loss=loss: loss(f(x), f(y), o)), batch
    made["mean"] = Case(net, lambda f, x, y, o: mean(f(x).mean(0)).square().sum() + f(y).square().mean()), batch
    made["mean apart"] = Case(net, lambda f, x, y, o: f(x).mean(0).square().sum() + f(y).square().mean()), batch
    encoder = ConvEncoder(1, (4, 8), (1, 1), (4, 4, 4), ((4, 4, 4), (2, 2, 2)), ((3, 3), (3, 3)), 0.1)
    clip = torch.randn(4, 1, 16, 16, 16)
    for options in ({}, {"loss": "sigreg"}):
        for together in (True, False):
            jepa = Jepa(encoder, gather=together, **options)
            name = f"jepa {options}" + (" apart" if not together else "")
            made[name] = Case(jepa, lambda f, clip: f.losses({"clip": clip})["loss"]), (clip,)
    return made


def outcomes() -> dict[str, list[Tensor]]:
    """Return loss and gradients of every case; this rank's share of the batch, losses and gradients averaged."""
    found = {}
    for name, (case, batch) in cases().items():
        case.zero_grad()
        rows = [share(x) for x in batch]
        ddp = DistributedDataParallel(case) if world() > 1 else case  # averages as long as it is held
        loss = ddp(*rows)
        loss.backward()
        found[name] = [mean(loss.detach()), *(w.grad.clone() for w in case.parameters() if w.requires_grad)]
    return found


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=WORLD)
    torch.save(outcomes(), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path: Path):
    multiprocessing.spawn(work, (str(tmp_path),), WORLD)
    one = outcomes()
    for rank in range(WORLD):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found.keys() == one.keys()
        for name, values in one.items():
            same = [torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(values, found[name], strict=True)]
            if name.endswith("apart"):
                assert not all(same[1:]), f"{name}: the other rank's rows matter"
            else:
                assert all(same), f"{name}: {[(a - b).abs().max() for a, b in zip(values, found[name], strict=True)]}"


def test_one_process_gets_back_what_it_gives():
    x = torch.randn(3, 2, requires_grad=True)
    assert gather(x) is x
    assert mean(x) is x
    assert world() == 1

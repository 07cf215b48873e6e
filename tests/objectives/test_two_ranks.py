"""Two ranks with half a batch each have, for every objective, the loss and the gradient of one process with it all."""

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from physrep.distributed import mean, share
from tests.objectives.test_objectives import FRAMES, NAMES, make

WORLD = 2
OPTIONS = {  # beyond the shipped configs
    "jepa, projected": ("jepa", {"projection": 32, "loss": "sigreg", "stop_gradient": True}),
    "mpp, nothing dropped": ("mpp", {}),
}
APART = {"jepa, each rank's own": ("jepa", {"gather": False})}


class Loss(nn.Module):
    """What DDP wraps: forward gives the loss of a batch."""

    def __init__(self, objective: nn.Module) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        loss: Tensor = self.objective.losses(batch)["loss"]
        return loss


def outcome(name: str, options: dict) -> list[Tensor]:
    """Return the mean loss of the ranks and the gradients of every weight, for this rank's share of a batch of 8."""
    objective = make(name, **options)
    generator = torch.Generator().manual_seed(1)
    clip = torch.randn(8, 4, FRAMES[objective.clips], 16, 16, generator=generator)
    theta = torch.randn(8, 2, generator=generator)
    batch = {"clip": clip, "theta": theta, "trajectory": torch.tensor([0, 1, 2, 3, 4, 0, 6, 7])}
    loss: nn.Module = Loss(objective)
    if distributed.is_initialized():
        loss = DistributedDataParallel(loss, broadcast_buffers=False)
    value = loss({k: share(x) for k, x in batch.items()})
    value.backward()
    return [mean(value.detach()), *(w.grad for w in objective.parameters() if w.requires_grad)]


def outcomes() -> dict[str, list[Tensor]]:
    named = {name: (name, {}) for name in NAMES} | OPTIONS | APART
    return {label: outcome(*of) for label, of in named.items()}


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=WORLD)
    found = outcomes()
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Tensor]]:
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(work, (str(folder),), WORLD)
    ranks: dict[str, list[Tensor]] = torch.load(folder / "found.pt", weights_only=True)
    return ranks


@pytest.mark.parametrize("label", [*NAMES, *OPTIONS])
def test_two_ranks_have_the_whole_batchs_gradient(found, label):
    one = outcome(*OPTIONS.get(label, (label, {})))
    size = torch.cat([g.flatten() for g in one[1:]]).norm()
    torch.testing.assert_close(found[label][0], one[0], rtol=1e-6, atol=1e-6)
    for a, b in zip(one[1:], found[label][1:], strict=True):
        assert (a - b).abs().max() <= 1e-6 * size


@pytest.mark.parametrize("label", APART)
def test_ranks_that_keep_their_statistics_to_themselves_have_another(found, label):
    one = outcome(*APART[label])
    assert any((a - b).abs().max() > 1e-4 for a, b in zip(one[1:], found[label][1:], strict=True))

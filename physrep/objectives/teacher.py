"""The slow double of a module, whose outputs are the targets of its training."""

from __future__ import annotations

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class Teacher(AveragedModel):
    """An average of `student` that begins with its weights and keeps the part `ema` at each `update_parameters`.

    It takes no gradient and stays in eval mode: nothing is dropped from a target. Raises ValueError for an `ema`
    outside [0, 1].
    """

    def __init__(self, student: nn.Module, ema: float) -> None:
        super().__init__(student, multi_avg_fn=get_ema_multi_avg_fn(ema))
        self.requires_grad_(False).update_parameters(student)
        self.eval()

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode, whatever becomes of what it is part of."""
        super().train(False)
        return self

"""Training steps beside the plain formulation's: seconds, peak memory, and how far from the arithmetic's floor.

`make bench` or `python -m benchmarks.step`, the small sets alone; `python -m benchmarks.step published` takes 10 to
16 minutes and 6 GB more. On a GPU if there is one.
"""

from __future__ import annotations

import argparse
import resource
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from statistics import median

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.plain import plain
from physrep import memory
from physrep.config import compose
from physrep.objectives.base import Objective
from physrep.optim import adamw
from physrep.run import build_objective

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TURN = 10.0  # seconds: a system may take memory back from a process that waits for others, so steps come in rows
FORMS = {  # what is trained, in what precision
    "plain": ("first", torch.float32),
    "plain, bfloat16": ("first", torch.bfloat16),
    "plain, channels last": ("last", torch.float32),
    "plain, channels last, bfloat16": ("last", torch.bfloat16),
    "physrep": ("ours", torch.float32),
    "physrep, bfloat16": ("ours", torch.bfloat16),
}
CONVOLUTIONS = ["plain", "plain, channels last", "plain, channels last, bfloat16", "physrep", "physrep, bfloat16"]
ATTENTION = ["plain", "plain, bfloat16", "physrep", "physrep, bfloat16"]
SETS = {  # encoder, objective, batch [B, C, T, H, W] (jepa's and views' hold two clips), rounds, forms
    "jepa": ("conv_tiny", "jepa", (32, 4, 16, 64, 64), 2, CONVOLUTIONS),
    "views": ("conv_tiny", "views", (32, 4, 16, 64, 64), 2, CONVOLUTIONS),
    "videomae": ("vit_nano", "videomae", (32, 4, 8, 64, 128), 2, ATTENTION),
    "mpp": ("avit_nano", "mpp", (32, 4, 9, 64, 64), 2, ATTENTION),
    "published": ("conv_small", "jepa", (1, 11, 32, 224, 224), 3, CONVOLUTIONS),
}


def make(case: str, form: str) -> tuple[Objective, dict[str, torch.Tensor]]:
    encoder, objective, shape, *_ = SETS[case]
    cfg = compose([f"encoder={encoder}", f"objective={objective}"])
    torch.manual_seed(0)
    meta = {"channels": range(shape[1]), "frames": shape[2], "targets": ["a", "b"], "periodic": [True, True]}
    model = build_objective(cfg, meta)
    if form != "ours":
        model = plain(model, channels_last=form == "last")
    batch = {"clip": torch.randn(shape), "theta": torch.zeros(shape[0], 2), "trajectory": torch.arange(shape[0])}
    return model.to(DEVICE), {k: v.to(DEVICE) for k, v in batch.items()}


def work(pipe: Connection, case: str, form: str, dtype: torch.dtype) -> None:
    """Take steps for `TURN` seconds for every message, alone in a process; answer with theirs and the peak in bytes."""
    if form == "ours":
        memory.keep()  # as fit does
    model, batch = make(case, form)
    optimizer = adamw(model, 1e-3, 0.05, (0.9, 0.95))
    idle = resident()
    while pipe.recv():
        took: list[float] = []
        while sum(took) < TURN:
            began = time.perf_counter()
            optimizer.zero_grad()
            with torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == torch.bfloat16):
                loss = model.losses(batch)["loss"]
            loss.backward()
            optimizer.step()
            float(loss.detach())
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            took.append(time.perf_counter() - began)
        pipe.send((took, resident() - idle))


def resident() -> int:
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def compare(case: str, names: list[str]) -> dict[str, tuple[float, float]]:
    """Return the median seconds and the peak of every form, steps taken in turns; nothing of one that has crashed."""
    context, pipes = get_context("spawn"), {}
    for name in names:
        form, dtype = FORMS[name]
        pipes[name], theirs = context.Pipe()
        context.Process(target=work, args=(theirs, case, form, dtype), daemon=True).start()
        theirs.close()
    answers: dict[str, list[tuple[list[float], int]]] = {name: [] for name in names}
    for _ in range(SETS[case][3] + 1):  # the first is for warming up
        for name, pipe in [*pipes.items()]:
            try:
                pipe.send(True)
                answers[name].append(pipe.recv())
            except (EOFError, BrokenPipeError):
                del pipes[name], answers[name]
    for pipe in pipes.values():
        pipe.send(False)
    return {name: (median([s for some, _ in took[1:] for s in some]), took[-1][1]) for name, took in answers.items()}


def operations(case: str) -> int:
    """Return the floating point operations of a step of ours: three times the forward pass's."""
    model, batch = make(case, "ours")
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.losses(batch)  # fused attention on a CPU is not counted
    return 3 * counter.get_total_flops()


def peak(dtype: torch.dtype, n: int = 1024 if DEVICE == "cpu" else 8192) -> float:
    """Return the operations per second of a square matrix product, the best of those of a second."""
    a, times = torch.randn(n, n, dtype=dtype, device=DEVICE), list[float]()
    (a @ a)[0, 0].item()
    while sum(times) < 1:
        began = time.perf_counter()
        (a @ a)[0, 0].item()
        times.append(time.perf_counter() - began)
    return 2 * n**3 / min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=["small", "published"], default="small")
    published = parser.parse_args().what == "published"
    cases = [case for case in SETS if (case == "published") == published]
    rate = {dtype: peak(dtype) for dtype in (torch.float32, torch.bfloat16)}
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else f"{torch.get_num_threads()} threads"
    rates = " and ".join(f"{r / 1e9:.0f} GFLOP/s in {d}" for d, r in rate.items())
    print(f"torch {torch.__version__}, {name}; matrix products: {rates}")
    slow = rate[torch.bfloat16] < rate[torch.float32]
    if slow:
        print("bfloat16 is slower than float32 here: its rows are left out")
    for case in cases:
        encoder, objective, shape, rounds, forms = SETS[case]
        names = [n for n in forms if not (slow and FORMS[n][1] == torch.bfloat16)]
        count = operations(case)
        print(
            f"\n{objective} with {encoder}, batch {' x '.join(map(str, shape))}, "
            f"{count / 1e9:.0f} GFLOP a step, median of {rounds} turns of {TURN:.0f} s"
        )
        print(f"{'':32}{'ms/step':>9}{'x plain':>10}{'MB more':>10}{'of plain':>10}{'x floor':>9}")
        rows = compare(case, names)
        first, most = rows["plain"]
        for name in names:
            if name not in rows:
                print(f"{name:32}  crashed")
                continue
            seconds, used = rows[name]
            floor = count / rate[FORMS[name][1]]
            print(
                f"{name:32}{1e3 * seconds:9.0f}{first / seconds:10.1f}{used / 1e6:10.0f}{used / most:10.2f}"
                f"{seconds / floor:9.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()

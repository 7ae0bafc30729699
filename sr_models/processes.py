"""Several processes that train one network: equal weights in all, a share of every batch in each.

torchrun starts them; which samples make a share is the sampler's business. A process that was not
started so is a group of its own, and everything here does nothing in it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

#: The first process validates alone, for as long as it takes; torchrun ends all if one dies.
_PATIENCE = timedelta(days=7)


def count() -> int:
    """How many processes share the training."""
    return dist.get_world_size() if _grouped() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if _grouped() else 0


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Inside, this process belongs to the group that torchrun started it for.

    Args:
        device: type; of `cuda`, each process takes the device of its own number.
    """
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=_PATIENCE)
    yield
    dist.destroy_process_group()  # not after an error: the others may never come


def average(tensors: Sequence[Tensor]) -> None:
    """Replaces each tensor by its mean over the processes, to the same bits in all of them.

    All go as one float32 vector: the networks here have a few million weights, so that exchanging
    them after the backward pass takes far less time than the pass.
    """
    if count() == 1 or not tensors:
        return
    with torch.no_grad():
        flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= count()
        for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))


def told_by_first(measure: Callable[[], float], device: torch.device) -> float:
    """What `measure` gives in the first process, which alone calls it; the others wait for it."""
    if count() == 1:
        return measure()
    value = torch.zeros((), dtype=torch.float64, device=device)
    if rank() == 0:
        value.fill_(measure())
    dist.broadcast(value, 0)
    return value.item()


def mean(x: Tensor) -> Tensor:
    """The mean of `x` over the processes; gradients pass as if all shares were one batch."""
    return _Mean.apply(x) if count() > 1 else x


def largest(x: Tensor) -> Tensor:
    """The largest of each element of `x` over the processes, without gradients."""
    if count() == 1:
        return x
    x = x.clone()
    dist.all_reduce(x, dist.ReduceOp.MAX)
    return x


def share(whole: Tensor) -> Tensor:
    """The rows of this process of something drawn for a whole batch, [count * B, ...] -> [B, ...].

    Every process draws the same numbers: their random states are equal, and stay so.
    """
    rows = len(whole) // count()
    return whole[rank() * rows : (rank() + 1) * rows]


def demand_splittable(network: nn.Module) -> None:
    """Refuses a network that would learn something else from shares than from whole batches.

    Raises:
        ValueError: a layer takes statistics of its share, or draws at random for it; those that
            know of the other processes (`DeploymentNorm`, our `DropPath`) do neither.
    """
    for name, module in network.named_modules():
        if isinstance(module, _NormBase) and module.track_running_stats:
            why = "normalises by statistics of the batch"
        elif isinstance(module, _DropoutNd) and module.p > 0:
            why = "leaves values out at random"
        elif getattr(module, "drop_prob", 0):  # what others call stochastic depth
            why = "leaves branches out at random"
        else:
            continue
        raise ValueError(f"{name} ({type(module).__name__}) {why}, which cannot be shared")


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _reduced(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _reduced(gradients[0])


def _reduced(x: Tensor) -> Tensor:
    summed = x.clone()
    dist.all_reduce(summed)
    return summed / count()


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()

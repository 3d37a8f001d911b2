"""Processes that train one network together."""

import os
from dataclasses import dataclass

import torch
from torch import distributed, nn

from vsfmanet.devices import has_fast_bf16


@dataclass(frozen=True, kw_only=True, slots=True)
class Workers:
    """The processes that train together, one a device; without `torchrun` there is one."""

    rank: int
    """Which one this is, from 0."""
    count: int
    """How many there are."""
    device: str
    """This one's device."""


def training_dtype(device: str) -> torch.dtype:
    """Return the type of convolutions in training: bfloat16, or fp32 on CPUs that have no instructions for it."""
    return torch.bfloat16 if not device.startswith("cpu") or has_fast_bf16() else torch.float32


def autocast(device: str) -> torch.autocast:
    """Return a context in which convolutions and matrix products are computed in `training_dtype`."""
    dtype = training_dtype(device)
    return torch.autocast(device.split(":")[0], torch.bfloat16, enabled=dtype == torch.bfloat16)


def join_workers(device: str) -> Workers:
    """Meet the other processes that `torchrun` started.

    Args:
        device: "cpu" or "cuda"; under `torchrun` each process takes the CUDA device of its local rank.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Workers(rank=0, count=1, device=device)
    on_cuda = device.startswith("cuda")
    if on_cuda:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if on_cuda else "gloo")
    return Workers(rank=distributed.get_rank(), count=count, device=device)


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Give every process the mean of all processes' gradients, in one message.

    This is what torch's DistributedDataParallel does, without its demand that all parameters be used in `forward`: the
    kernel head is used by the loss, and the embeddings of known exposures not in every step. The networks are small
    (51 MB at most), so that nothing is won by sending parts of the gradient ahead.
    """
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view(gradient.shape))

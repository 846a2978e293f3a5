"""Trains a network once, with fixed seeds, and keeps its weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]


def trained(
    path: Path,
    factory: Callable[[], nn.Module],
    inputs: np.ndarray,
    targets: np.ndarray,
    *,
    epochs: int,
    batch: int = 128,
    rate: float = 2e-3,
    loss: Loss = nn.functional.cross_entropy,
) -> Path:
    """Weights of a network trained with Adam and a cosine schedule; `path` is read again where it exists."""
    if path.is_file():
        return path
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = factory().train()
    optimizer = torch.optim.Adam(model.parameters(), rate)
    steps = epochs * -(-len(inputs) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    samples, truth = torch.from_numpy(inputs), torch.from_numpy(targets)
    for _ in range(epochs):
        for chosen in torch.randperm(len(inputs)).split(batch):
            optimizer.zero_grad()
            loss(model(samples[chosen]), truth[chosen]).backward()
            optimizer.step()
            schedule.step()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return path

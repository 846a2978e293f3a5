"""What merging by data needs to know of each model: which weights matter, and what its layers see."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from exporter.errors import ModelError
from exporter.merge.fusing import class_axis
from exporter.merge.states import tied_names

Batch = tuple[Tensor, ...]
Call = Callable[[nn.Module, Batch], Sequence[Tensor]]


def fisher_information(
    module: nn.Module,
    batches: Iterable[Batch],
    *,
    call: Call,
    loss: Literal["kl", "mse"] = "kl",
    seed: int = 0,
) -> dict[str, Tensor]:
    """Diagonal of the Fisher information, without labels: answers are drawn from the model's own (arXiv 2111.09832).

    Args:
        module: left unchanged but for gradients, which are off again afterwards.
        batches: unlabelled inputs; each sample is looked at alone.
        call: runs the module on a batch.
        loss: `kl` takes outputs for logits of classes; `mse` for numbers with noise of variance 1.
        seed: of what is drawn.

    Returns:
        Mean of squared gradients of the log-likelihood over the samples, by parameter name; a parameter with several
        names has it by each.

    Raises:
        ModelError: no output has gradients, or `kl` is asked for of outputs that tell no classes apart.
    """
    random = torch.Generator().manual_seed(seed)
    module = module.eval()
    named = {
        name: parameter.requires_grad_(True)
        for name, parameter in module.named_parameters(remove_duplicate=False)
        if parameter.is_floating_point()
    }
    sums = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
    samples = 0
    try:
        for batch in batches:
            for index in range(len(batch[0])):
                outputs = call(module, tuple(tensor[index : index + 1] for tensor in batch))
                learned = [output for output in outputs if output.requires_grad]
                if not learned:
                    raise ModelError(
                        "no output of the model has gradients by its weights, so that importances cannot be told",
                        where='[merge] method = "fisher"',
                        why=f"outputs are {', '.join(str(output.dtype) for output in outputs)}",
                        hint="let forward() return what whole numbers are chosen by (the logits), or take `average`",
                    )
                likelihood = torch.stack([_log_likelihood(output, loss, random) for output in learned]).sum()
                gradients = torch.autograd.grad(likelihood, list(named.values()), allow_unused=True)
                for name, gradient in zip(named, gradients, strict=True):
                    if gradient is not None:
                        sums[name] += gradient.square()
                samples += 1
    finally:
        module.requires_grad_(False)
    return {name: total / max(1, samples) for name, total in sums.items()}


def grams(module: nn.Module, batches: Iterable[Batch], *, call: Call) -> dict[str, Tensor]:
    """Inner products of what linear layers and convolutions see: X^T X over samples (arXiv 2212.09849).

    Args:
        module: left unchanged.
        batches: unlabelled inputs.
        call: runs the module on a batch.

    Returns:
        By the name of each layer's weight, [inputs, inputs], divided by the number of rows; a convolution's inputs
        are its patches. Grouped convolutions have none.
    """
    found: dict[str, Tensor] = {}
    rows: dict[str, int] = {}
    handles = []
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1):
            key = f"{name}.weight" if name else "weight"

            def look(layer: nn.Module, given: tuple[Any, ...], named: dict[str, Any], key: str = key) -> None:
                seen = _rows(layer, given[0] if given else next(iter(named.values()))).double()
                found[key] = found.get(key, 0.0) + seen.T @ seen
                rows[key] = rows.get(key, 0) + len(seen)

            handles.append(layer.register_forward_pre_hook(look, with_kwargs=True))
    try:
        with torch.no_grad():
            for batch in batches:
                call(module, batch)
    finally:
        for handle in handles:
            handle.remove()
    for group in tied_names(module):
        # One weight that several layers use sees what all of them see, by whatever name it is merged.
        if users := [name for name in group if name in found]:
            total, count = torch.stack([found[name] for name in users]).sum(0), sum(rows[name] for name in users)
            found |= dict.fromkeys(group, total)
            rows |= dict.fromkeys(group, count)
    return {key: (total / rows[key]).float() for key, total in found.items()}


def _rows(layer: nn.Module, given: Tensor) -> Tensor:
    if isinstance(layer, nn.Conv2d):
        padding = layer.padding if isinstance(layer.padding, tuple) else _same(layer)
        patches = nn.functional.unfold(
            given, layer.kernel_size, dilation=layer.dilation, padding=padding, stride=layer.stride
        )
        return patches.transpose(1, 2).reshape(-1, patches.shape[1])
    return given.reshape(-1, given.shape[-1])


def _same(layer: nn.Conv2d) -> tuple[int, ...]:
    """What `padding="same"` adds, up to the odd pixel; "valid" adds nothing."""
    if layer.padding == "valid":
        return (0, 0)
    return tuple(dilation * (size - 1) // 2 for dilation, size in zip(layer.dilation, layer.kernel_size, strict=True))


def _log_likelihood(output: Tensor, loss: str, random: torch.Generator) -> Tensor:
    if loss == "mse":
        noise = torch.randn(output.shape, generator=random)
        return (output * noise).sum()  # The gradient of -(y - f)^2 / 2 where y = f + noise.
    rows = output.movedim(class_axis(output.shape, where='[merge] loss = "kl"', instead='`loss = "mse"`'), -1)
    chances = torch.log_softmax(rows.reshape(-1, rows.shape[-1]), -1)
    drawn = torch.multinomial(chances.detach().exp(), 1, generator=random)
    return chances.gather(-1, drawn).sum()

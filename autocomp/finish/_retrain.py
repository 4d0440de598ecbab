"""Retraining between the stages of a compression recipe: masks, codebooks and grids stay what they are.

Sources: masked retraining, Han et al. 2015; codebooks trained by the gradients summed over each cluster, Han et al.
2016, section 3.3; rounding in the forward pass with a straight-through gradient, Bengio et al. 2013. Ours adds an l1
penalty on the symbols of a grid, so that fewer of them cost bits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocomp.core.encodings import CodebookTensor, QuantizedTensor, round_half
from autocomp.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class Retraining:
    """How long and how fast: Adam, learning rate from ``rate`` down a half cosine, cross-entropy.

    Attributes:
        epochs, batch_size: of the training images.
        rate: first learning rate.
        weight_decay: decoupled.
        penalty: of :func:`retrain_grids`: weight of the mean number of steps between a weight and zero.
        seed: of the order of the images and of what ``augment`` draws.
        augment: changes a batch [n, ...] with a generator; None leaves it.
    """

    epochs: int = 10
    batch_size: int = 64
    rate: float = 1e-3
    weight_decay: float = 0.0
    penalty: float = 0.0
    seed: int = 0
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None

    def __post_init__(self) -> None:
        for name, least in (("epochs", 0), ("batch_size", 1), ("rate", 0), ("weight_decay", 0), ("penalty", 0)):
            if not least <= getattr(self, name) < float("inf"):
                raise ConfigError(f"retraining.{name} = {getattr(self, name)}; allowed {least} and more")


def retrain_masked(
    module: nn.Module, masks: Mapping[str, Tensor], inputs: Tensor, targets: Tensor, config: Retraining
) -> nn.Module:
    """A copy of ``module`` trained on with the weights outside ``masks`` at zero throughout.

    Args:
        module: in any mode; untouched. The copy is in eval mode.
        masks: by parameter name, bool in the parameter's shape; parameters without one are free. Empty: training.
        inputs, targets: [n, ...] and int64 [n].
        config: of the training.

    Raises:
        DataError: no images, or a loss that is not finite.
    """
    trained = copy.deepcopy(module)

    def weights(free: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: free[name] * mask for name, mask in masks.items()}

    _fit(trained, dict(trained.named_parameters()), weights, inputs, targets, config)
    with torch.no_grad():
        for name, mask in masks.items():
            parameter = trained.get_parameter(name)
            parameter.copy_(torch.where(mask, parameter, 0.0))
    return trained.eval()


def retrain_codebooks(
    module: nn.Module, encodings: Mapping[str, CodebookTensor], inputs: Tensor, targets: Tensor, config: Retraining
) -> tuple[nn.Module, dict[str, CodebookTensor]]:
    """Train the entries of codebooks, and all parameters without one; the indices stay.

    Args:
        module: untouched.
        encodings: by parameter name. Entries that are exactly zero stay zero.
        inputs, targets, config: as in :func:`retrain_masked`.

    Returns:
        A copy with the decoded weights, and the encodings with the new entries, rounded as a file stores them.
    """
    trained = copy.deepcopy(module)
    entries = {name: nn.Parameter(e.codebook.clone()) for name, e in encodings.items()}
    free = {n: p for n, p in trained.named_parameters() if n not in encodings}

    def weights(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: replace(e, codebook=torch.where(e.codebook == 0, 0.0, values[f"codebook of {name}"])).decode()
            for name, e in encodings.items()
        }

    _fit(trained, {**free, **{f"codebook of {n}": p for n, p in entries.items()}}, weights, inputs, targets, config)
    made = {
        name: replace(e, codebook=round_half(torch.where(e.codebook == 0, 0.0, entries[name].detach())))
        for name, e in encodings.items()
    }
    return _with_weights(trained, {name: e.decode() for name, e in made.items()}), made


def retrain_grids(
    module: nn.Module, encodings: Mapping[str, QuantizedTensor], inputs: Tensor, targets: Tensor, config: Retraining
) -> tuple[nn.Module, dict[str, QuantizedTensor]]:
    """Train weights through rounding to their symmetric grids, and all other parameters; the scales stay.

    Training begins at the encodings' own values, so that symbols chosen with error compensation or by their bits
    move only where the loss says so.

    Args:
        module: untouched.
        encodings: by parameter name. Symbols that are zero stay zero.
        inputs, targets, config: as in :func:`retrain_masked`.

    Returns:
        A copy with the decoded weights, and the encodings with the new symbols.

    Raises:
        DataError: a grid with a zero point, which has no exact zero.
    """
    for name, e in encodings.items():
        if e.zero_point is not None:
            raise DataError(f"{name}: retraining takes symmetric grids; leave the zero point out")
    trained = copy.deepcopy(module)
    limits = {n: float(2 ** (e.bits - 1) - 1) if e.bits else 127.0 for n, e in encodings.items()}
    masks = {name: e.symbols != 0 for name, e in encodings.items()}
    count = sum(int(mask.sum()) for mask in masks.values())
    trained = _with_weights(trained, {name: e.decode() for name, e in encodings.items()})

    def steps(name: str, weight: Tensor) -> Tensor:
        exact = weight * masks[name] / replace(encodings[name], symbols=torch.ones_like(weight)).decode()
        return exact.clamp(-limits[name], limits[name])

    def weights(free: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for name, e in encodings.items():
            exact = steps(name, free[name])
            found[name] = replace(e, symbols=exact + (exact.round() - exact).detach()).decode()
        return found

    def penalty(free: Mapping[str, Tensor]) -> Tensor:
        total = torch.stack([steps(name, free[name]).abs().sum() for name in encodings]).sum()
        return config.penalty * total / max(1, count)

    parameters = dict(trained.named_parameters())
    _fit(trained, parameters, weights, inputs, targets, config, penalty if config.penalty else None)
    with torch.no_grad():
        made = {n: replace(e, symbols=steps(n, parameters[n]).round().short()) for n, e in encodings.items()}
    return _with_weights(trained, {name: e.decode() for name, e in made.items()}), made


def _fit(
    module: nn.Module,
    free: Mapping[str, Tensor],
    weights: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
    inputs: Tensor,
    targets: Tensor,
    config: Retraining,
    penalty: Callable[[Mapping[str, Tensor]], Tensor] | None = None,
) -> None:
    """Train ``free`` in place; ``module`` runs with ``weights(free)`` for the parameters of those names."""
    if not len(inputs) or len(inputs) != len(targets):
        raise DataError(f"retraining on {len(inputs)} images with {len(targets)} targets; give one of each, or more")
    generator = torch.Generator().manual_seed(config.seed)
    size = min(config.batch_size, len(inputs))
    batches = len(inputs) // size
    optimizer = torch.optim.AdamW(list(free.values()), lr=config.rate, weight_decay=config.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, config.epochs * batches))
    module.train()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(config.seed)
        for _ in range(config.epochs):
            order = torch.randperm(len(inputs), generator=generator)[: batches * size]
            for index in order.view(batches, size):
                batch = inputs[index] if config.augment is None else config.augment(inputs[index], generator)
                loss = F.cross_entropy(torch.func.functional_call(module, weights(free), (batch,)), targets[index])
                if penalty is not None:
                    loss = loss + penalty(free)
                if not bool(torch.isfinite(loss)):
                    raise DataError(f"retraining: the loss is not finite at rate {config.rate:g}; give a smaller one")
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
    module.eval()


def _with_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """``module`` in eval mode with these values written into its parameters."""
    with torch.no_grad():
        for name, values in weights.items():
            module.get_parameter(name).copy_(values)
    return module.eval()

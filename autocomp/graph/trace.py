"""From any ``nn.Module`` to a :class:`~autocomp.core.network.Network`: folded, traced, layers and values named."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from autocomp.core.network import Fold, Layer, Network, Skipped
from autocomp.errors import DataError
from autocomp.graph import fold, layers
from autocomp.graph.capture import EXPORT_ERRORS, NotTraceableError, capture, first_tensor, one_line, quiet_tracing
from autocomp.graph.program import Program
from autocomp.graph.values import name_values

FOLD_TOLERANCE = 1e-3
"""Largest difference of outputs, relative to their largest magnitude, that rounding can explain (a norm
with a tiny variance amplifies it); beyond it folding is undone and the graph is not trusted."""


def build_network(model: nn.Module, example: Tensor) -> Network:
    """Trace, fold and name ``model``; the model itself is not touched.

    Parts that cannot be compressed are named in :attr:`Network.skipped` and stay in float32. Where the
    computation is no fixed graph, :attr:`Network.graph` is None, :attr:`Network.no_graph` says why, and
    nothing is folded (nobody could tell who else reads a layer's output).

    Args:
        model: any module of one tensor argument. Where it returns several tensors or a dict, the first
            tensor (in order) is the network's output everywhere in autocomp.
        example: inputs [n, ...].

    Raises:
        DataError: the model does not run on ``example``, or its weights are not finite.
    """
    module = float_copy(model)
    batch = _two_samples(example)
    expected = _run(module, batch, example)
    check_finite(module)
    try:
        graph = capture(module, batch)
        check_agreement(Program(graph).run(batch), expected, "the traced graph computes something else")
    except NotTraceableError as error:
        return _without_graph(module, example, str(error))
    except EXPORT_ERRORS as error:
        return _without_graph(module, example, one_line(error))
    return assemble(_fold(module, graph, batch, expected), batch)


def network_of(module: nn.Module, example: Tensor) -> Network:
    """The network of a module as it is: nothing is copied or folded. Arguments and errors as above."""
    batch = _two_samples(example)
    _run(module, batch, example)
    try:
        graph = capture(module, batch)
    except NotTraceableError as error:
        return _without_graph(module, batch, str(error))
    reasons = dict.fromkeys(fold.norms(module), "it was not folded when the file was written")
    return assemble(Folded(module, graph, {}, reasons), batch)


@dataclass(frozen=True)
class Folded:
    """A module and its graph after folding; ``reasons``: norms that stay → why."""

    module: nn.Module
    graph: fx.GraphModule
    folds: Mapping[str, Fold]
    reasons: Mapping[str, str]


def assemble(folded: Folded, batch: Tensor) -> Network:
    """Name layers and values of a captured graph, with shapes from one run on ``batch`` [n ≥ 2, ...]."""
    shapes, floats = _measure(folded.graph, batch)
    values = name_values(folded.graph.graph, floats)
    keys = {value.node: key for key, value in values.items()}
    found, skipped = layers.from_graph(folded.module, folded.graph.graph, shapes, keys)
    return Network(
        module=folded.module,
        layers=found,
        folds=dict(folded.folds),
        skipped=_all_skipped(folded.module, found, skipped, folded.reasons),
        graph=folded.graph,
        values=values,
        input_shape=tuple(batch.shape[1:]),
        input_dtype=_type_name(batch),
    )


def check_finite(module: nn.Module) -> None:
    """DataError naming the first tensor of the state dict that holds NaN or Inf."""
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise DataError(
                f"weights: {name} holds {bad} NaN or infinite values of {tensor.numel()}; mend the checkpoint"
            )


def float_copy(model: nn.Module) -> nn.Module:
    """A float32 copy in eval mode, without gradients, on the CPU."""
    module = copy.deepcopy(model).eval().cpu()
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.requires_grad_(False)
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            tensor.data = tensor.data.float()
    return module


def _two_samples(example: Tensor) -> Tensor:
    if example.dim() < 1 or not len(example):
        raise DataError(f"the example input has shape {tuple(example.shape)}; give at least one sample [n, ...]")
    example = example.detach().cpu()
    if example.is_floating_point():
        example = example.float()
    return torch.cat([example, example])[: max(2, len(example))]


def _run(module: nn.Module, batch: Tensor, example: Tensor) -> Tensor:
    try:
        with quiet_tracing():
            return first_tensor(module(batch))
    except EXPORT_ERRORS as error:
        shape = tuple(example.shape)
        raise DataError(f"the model does not run on an input of shape {shape}: {one_line(error)}") from error


def check_agreement(found: Tensor, expected: Tensor, message: str) -> None:
    """NotTraceableError with ``message`` where two results differ by more than rounding can explain."""
    scale = float(expected.abs().max()) if expected.numel() and expected.is_floating_point() else 1.0
    same = found.shape == expected.shape
    if not same or not torch.allclose(found, expected, rtol=0, atol=FOLD_TOLERANCE * max(scale, 1e-6), equal_nan=True):
        raise NotTraceableError(message)


def _fold(module: nn.Module, graph: fx.GraphModule, batch: Tensor, expected: Tensor) -> Folded:
    nodes, reasons = fold.foldable(module, graph.graph)
    pairs = [(str(node.args[0].meta["path"]), path) for path, node in nodes.items()]  # type: ignore[union-attr]
    if not pairs:
        return Folded(module, graph, {}, reasons)
    target = copy.deepcopy(module)
    folds = fold.fold_all(target, pairs)
    plain = fx.Graph()
    copies: dict[fx.Node, Any] = {}
    plain.output(plain.graph_copy(graph.graph, copies))
    list(fold.remove_norms(plain, {path: copies[node] for path, node in nodes.items()}))
    new_graph = bind(plain, target, graph)
    try:
        with quiet_tracing():
            check_agreement(first_tensor(target(batch)), expected, "")
            check_agreement(Program(new_graph).run(batch), expected, "")
    except NotTraceableError:
        reasons |= dict.fromkeys(nodes, "folding would change the outputs by more than rounding")
        return Folded(module, graph, {}, reasons)
    return Folded(target, new_graph, folds, reasons)


def bind(plain: fx.Graph, module: nn.Module, constants: fx.GraphModule) -> fx.GraphModule:
    """A GraphModule of ``plain`` that shares ``module``'s tensors; other constants come from ``constants``."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    other = Program(constants).tensors
    targets = [str(n.target) for n in plain.nodes if n.op == "get_attr"]
    return fx.GraphModule({t: tensors[t] if t in tensors else other[t] for t in targets}, plain)


def _measure(
    graph: fx.GraphModule, batch: Tensor
) -> tuple[dict[fx.Node, tuple[int, ...]], dict[fx.Node, tuple[int, ...]]]:
    """Shapes of all tensor results, and of the float32 ones that have a batch axis."""
    shapes: dict[fx.Node, tuple[int, ...]] = {}
    floats: dict[fx.Node, tuple[int, ...]] = {}

    def record(node: fx.Node, result: Any) -> None:
        if isinstance(result, Tensor):
            shapes[node] = tuple(result.shape)
            if result.dtype == torch.float32 and result.dim() > 0:
                floats[node] = tuple(result.shape)

    program = Program(graph)
    with torch.inference_mode():
        program.run(batch, observe=dict.fromkeys(program.nodes, record))
    return shapes, floats


def _without_graph(module: nn.Module, example: Tensor, reason: str) -> Network:
    batch = _two_samples(example)
    with quiet_tracing():
        found, skipped = layers.from_forward(module, batch)
    reasons = dict.fromkeys(fold.norms(module), "without a graph nobody can tell who else reads the layer before it")
    return Network(
        module=module,
        layers=found,
        skipped=_all_skipped(module, found, skipped, reasons),
        no_graph=reason,
        input_shape=tuple(batch.shape[1:]),
        input_dtype=_type_name(batch),
    )


def _all_skipped(
    module: nn.Module, found: Mapping[str, Layer], skipped: list[Skipped], reasons: Mapping[str, str]
) -> tuple[Skipped, ...]:
    norms = [Skipped(name=path, reason=f"BatchNorm is not folded: {reason}") for path, reason in reasons.items()]
    accounted = {*found, *(a for layer in found.values() for a in layer.aliases)}
    accounted |= {s.name for s in skipped} | set(reasons)
    return (*skipped, *norms, *layers.other_parameters(module, accounted))


def stand_in(network: Network, samples: int = 2) -> Tensor:
    """Inputs [samples, ...] of the network's shape and type, for tracing it again: normal deviates, or token ids.

    Ids are below the number of rows of every embedding; different ones, for positions that are all alike hide
    what attention does.
    """
    shape = (samples, *network.input_shape)
    generator = torch.Generator().manual_seed(0)
    dtype: torch.dtype = getattr(torch, network.input_dtype)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    rows = [m.num_embeddings for m in network.module.modules() if isinstance(m, nn.Embedding)]
    return torch.randint(min(rows, default=1), shape, generator=generator).to(dtype)


def _type_name(batch: Tensor) -> str:
    return str(batch.dtype).removeprefix("torch.")

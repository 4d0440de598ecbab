"""A module's computation as a plain functional graph of aten operations.

``torch.export`` does the tracing. What it returns is brought to a plain form: one input, one output
(the first tensor of whatever the module returns), no in-place operations, no checks; each node's
``meta`` holds only ``path``, the module it ran in, and the input's ``dtype``.
"""

from __future__ import annotations

import contextlib
import io
import logging
import operator
import re
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, export

from autocomp.graph import ops

# torch.export has no common base for what it raises; the module is known to run when it is called.
EXPORT_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, AssertionError, LookupError, ArithmeticError)


class NotTraceableError(Exception):
    """The module's computation is not one fixed graph; the message is one line why."""


def first_tensor(output: Any) -> Tensor:
    """The first tensor of a module's output, in the order of ``torch.utils._pytree`` (sequence or dict order)."""
    leaves = torch.utils._pytree.tree_leaves(output)
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            return leaf
    raise TypeError(f"the model returns no tensor but {type(output).__name__}")


_CHATTY = (
    "torch.fx.experimental.symbolic_shapes",
    "torch.onnx._internal.exporter._registration",
    "torch.onnx._internal.exporter._schemas",
    "onnxscript",
    "onnx_ir",
)


@contextlib.contextmanager
def quiet_tracing() -> Iterator[None]:
    """Tracing without gradients, messages and the fused attention kernel that hides its weights.

    Torch prints the partial graph and logs advice where it cannot trace; the exception says enough.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    levels = {name: logging.getLogger(name).level for name in _CHATTY}
    torch.backends.mha.set_fastpath_enabled(False)
    for name in levels:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    sink = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            torch.no_grad(),
            contextlib.redirect_stdout(sink),
            contextlib.redirect_stderr(sink),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def one_line(error: BaseException) -> str:
    """An error as one short line: its class and the first line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def capture(module: nn.Module, example: Tensor) -> fx.GraphModule:
    """Trace ``module`` with a free batch axis.

    Args:
        module: in eval mode.
        example: inputs [n, ...], n ≥ 2 (one sample would fix the batch size).

    Raises:
        NotTraceableError: where ``torch.export`` cannot, or the module changes its own buffers.
    """
    try:
        with quiet_tracing():
            program = export(module, (example,), dynamic_shapes=({0: Dim("batch")},))
            try:
                return _plain(program, module)
            except _AliasedMutationError:
                return _plain(program.run_decompositions({}), module)
    except _AliasedMutationError as error:
        raise NotTraceableError(str(error)) from None
    except EXPORT_ERRORS as error:
        raise NotTraceableError(one_line(error)) from error


def _plain(program: ExportedProgram, module: nn.Module) -> fx.GraphModule:
    traced = program.module()
    assert isinstance(traced, fx.GraphModule)
    graph = fx.Graph()
    output = graph.graph_copy(traced.graph, {})
    leaves = [n for n in ops.walk_nodes(output) if isinstance(n.meta.get("val"), Tensor)]
    if not leaves:
        raise NotTraceableError("the model returns no tensor")
    graph.output(leaves[0])
    for node in reversed(graph.nodes):
        if ops.is_check(node) and not node.users:
            graph.erase_node(node)
    _make_functional(graph)
    _plain_batch_norm(graph)
    _drop_dead(graph)
    first_names = {id(t): name for name, t in reversed(list(_named_tensors(module)))}
    attributes: dict[str, Any] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            value = _attribute(traced, str(node.target))
            node.target = first_names.get(id(value), node.target)
            attributes[str(node.target)] = value
        dtype = {"dtype": node.meta["val"].dtype} if node.op == "placeholder" else {}
        node.meta = {"path": _path(node), **dtype}
    _merge_attributes(graph)
    graph.lint()
    return fx.GraphModule(attributes, graph)


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _attribute(root: nn.Module, target: str) -> Any:
    found: Any = root
    for part in target.split("."):
        found = getattr(found, part)
    return found


def _path(node: fx.Node) -> str:
    """Path of the innermost module that the node ran in; calls 2+ of a module are marked "@1" by torch."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else ""
    return "" if path.startswith("_empty_nn_module_stack") else re.sub(r"@\d+", "", path)


def _drop_dead(graph: fx.Graph) -> None:
    for node in reversed(graph.nodes):
        if node.op not in ("placeholder", "output") and not node.users:
            graph.erase_node(node)


def _merge_attributes(graph: fx.Graph) -> None:
    """One get_attr node a tensor."""
    seen: dict[str, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op == "get_attr" and seen.setdefault(str(node.target), node) is not node:
            node.replace_all_uses_with(seen[str(node.target)])
            graph.erase_node(node)


class _AliasedMutationError(Exception):
    """An in-place operation that other views of the same memory observe."""


def _make_functional(graph: fx.Graph) -> None:
    """Replace in-place operations by functional ones; later readers of the old name get the new result."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    memory: dict[fx.Node, set[fx.Node]] = {node: {node} for node in graph.nodes}
    for node in list(graph.nodes):
        if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
            memory[node.args[0]].add(node)
            memory[node] = memory[node.args[0]]
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        schema = node.target._schema
        if not schema.is_mutable:
            viewed = _viewed(node)
            if viewed is not None:
                memory[viewed].add(node)
                memory[node] = memory[viewed]
            continue
        target = node.args[0] if node.args else None
        functional = _functional_overload(node.target)
        if not isinstance(target, fx.Node) or functional is None:
            raise _AliasedMutationError(f"the model writes in place with {schema.name}")
        for other in memory[target]:
            later = any(order.get(user, 0) > order[node] for user in other.users)
            if other.op == "get_attr" or (other is not target and later):
                raise _AliasedMutationError(
                    f"the model writes in place with {schema.name} into memory that is read elsewhere"
                )
        with graph.inserting_after(node):
            fresh = graph.call_function(functional, node.args, node.kwargs)
        fresh.meta = node.meta
        order[fresh], memory[fresh] = order[node], {fresh}
        node.replace_all_uses_with(fresh)
        for user in [u for u in target.users if u is not fresh and order[u] > order[node]]:
            user.replace_input_with(target, fresh)
        graph.erase_node(node)


def _viewed(node: fx.Node) -> fx.Node | None:
    """The node whose memory the result may share."""
    schema = node.target._schema  # type: ignore[union-attr]
    shares = any(a.alias_info is not None for a in schema.arguments)
    # in eval mode dropout hands its input on, which its schema does not say
    shares = shares or ops.op_name(node) in ops.MOVES
    first = next(iter(ops.inputs_of(node)), None)
    return first if shares else None


def _functional_overload(overload: torch._ops.OpOverload) -> torch._ops.OpOverload | None:
    """``aten.add_.Tensor`` → ``aten.add.Tensor``; None where there is no such operation."""
    namespace, name = overload._schema.name.split("::")
    if not name.endswith("_") or name.endswith("__"):
        return None
    packet = getattr(getattr(torch.ops, namespace), name[:-1], None)
    return getattr(packet, overload._overloadname, None) if packet is not None else None


def _plain_batch_norm(graph: fx.Graph) -> None:
    """``run_decompositions`` leaves a three-result norm: write it as ``aten.batch_norm`` again."""
    for node in list(graph.nodes):
        if node.op != "call_function" or ops.op_name(node) != "_native_batch_norm_legit_no_training":
            continue
        x, weight, bias, mean, var, momentum, eps = node.args
        with graph.inserting_after(node):
            norm = graph.call_function(
                torch.ops.aten.batch_norm.default, (x, weight, bias, mean, var, False, momentum, eps, False)
            )
        norm.meta = node.meta
        for user in list(node.users):
            if user.args[1] == 0:
                user.replace_all_uses_with(norm)

"""Values: the tensors between operations that activation quantization decides on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from torch import fx

from autocomp.core.network import Value
from autocomp.graph import ops


def name_values(graph: fx.Graph, shapes: Mapping[fx.Node, tuple[int, ...]]) -> dict[str, Value]:
    """All values of a plain graph, by key, in order of execution.

    A key is "<module path>:<op>:<ordinal>", counted among the values of one module and operation, so
    it depends on the model's code and not on how a torch version numbers its nodes.

    Args:
        graph: from :func:`autocomp.graph.capture.capture`.
        shapes: float32 results with their shapes, batch axis included.
    """
    depends: set[fx.Node] = set()
    nonnegative: dict[fx.Node, bool] = {}
    keys: dict[fx.Node, str] = {}
    counts: Counter[tuple[str, str]] = Counter()
    values: dict[str, Value] = {}
    for node in graph.nodes:
        reads = ops.inputs_of(node)
        if node.op == "placeholder":
            depends.add(node)
            key, op = "input", "input"
        elif node.op == "call_function" and any(n in depends for n in reads):
            if ops.op_name(node) not in ("sym_size", "size"):
                depends.add(node)
            nonnegative[node] = ops.is_nonnegative(node, nonnegative)
            op = ops.op_name(node)
            key = f"{node.meta['path']}:{op}:{counts[node.meta['path'], op]}"
        else:
            continue
        if node not in shapes:
            continue
        counts[node.meta.get("path", ""), op] += 1
        keys[node] = key
        values[key] = Value(
            key=key,
            op=op if node.op == "placeholder" else ops.value_op(node),
            shape=shapes[node][1:],
            nonnegative=nonnegative.get(node, False),
            producers=tuple(dict.fromkeys(_producers(node, keys, depends))),
            node=node.name,
        )
    return values


def _producers(node: fx.Node, keys: Mapping[fx.Node, str], depends: set[fx.Node]) -> list[str]:
    """Keys of the nearest values that a node is computed from, through results that are no values."""
    found: list[str] = []
    for source in ops.inputs_of(node):
        if source in keys:
            found.append(keys[source])
        elif source in depends:
            found += _producers(source, keys, depends)
    return found


def behind_activation(node: fx.Node) -> fx.Node:
    """The clipping activation that alone reads ``node``, else ``node`` itself."""
    users = list(node.users)
    if len(users) == 1 and users[0].op == "call_function" and ops.op_name(users[0]) in ops.CLIPS:
        return users[0]
    return node

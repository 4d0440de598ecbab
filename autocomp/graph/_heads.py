"""Attention heads as groups: modules with a number of heads and query, key, value and output projections."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from autocomp.core.network import Network, Skipped
from autocomp.graph._cuts import Cut
from autocomp.graph._depgraph import Draft, cuts_of

NAMES = ("num_heads", "n_heads", "num_attention_heads", "nhead", "heads")
"""Integer attributes that hold the number of heads."""

_PARTS = {
    part: re.compile(rf"(to_?|w_?|linear_?|lin_?|fc_?)?({names})(_?(proj|projection|linear|lin|layer|fc))?", re.I)
    for part, names in {"q": "q|query|queries", "k": "k|key|keys", "v": "v|value|values"}.items()
}
_PACKED = re.compile(r"(to_?|w_?)?(qkv|query_key_value|in_proj|c_attn)(_?(proj|linear))?", re.I)


def head_drafts(network: Network) -> tuple[list[list[Draft]], list[Skipped]]:
    """Drafts of every attention module: the ways its code may be laid out, the likeliest first; and refusals."""
    found: list[list[Draft]] = []
    refused: list[Skipped] = []
    for path, module in network.module.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            reason = "attention heads: nn.MultiheadAttention packs its projections into tensors that are no layer's"
            refused.append(Skipped(name=path, reason=reason))
            continue
        name = next((n for n in NAMES if _integer(module, n)), None)
        linear = {n: c for n, c in module.named_children() if isinstance(c, nn.Linear)}
        if name is None or not linear:
            continue
        drafts = list(_drafts(network, path, module, name, linear))
        if drafts:
            found.append(drafts)
        else:
            reason = f"attention heads: no query, key, value and output projections of {name} equal heads were found"
            refused.append(Skipped(name=path, reason=reason))
    return found, refused


def _integer(module: nn.Module, name: str) -> bool:
    value = getattr(module, name, None)
    return isinstance(value, int) and not isinstance(value, bool)


def _drafts(
    network: Network, path: str, module: nn.Module, attribute: str, linear: dict[str, nn.Linear]
) -> Iterator[Draft]:
    heads = int(getattr(module, attribute))
    prefix = f"{path}." if path else ""
    split = [next((n for n in linear if pattern.fullmatch(n)), None) for pattern in _PARTS.values()]
    packed = next((n for n in linear if _PACKED.fullmatch(n)), None)
    names = [n for n in split if n is not None] if None not in split else [packed] if packed is not None else []
    if not names or heads < 1 or any(prefix + n not in network.layers for n in names):
        return
    widths = {linear[n].out_features // (3 if names == [packed] else 1) for n in names}
    inner = widths.pop()
    order = list(network.layers)
    first, last = (pick(order.index(prefix + n) for n in names) for pick in (min, max))
    output = next((n for n in order[last + 1 :] if _reads(network, n, inner)), None)
    if widths or inner % heads or output is None:
        return
    dim = inner // heads
    # [3, heads, dim] in most code, [heads, 3, dim] in some; plain projections are [heads, dim]
    flat = torch.arange(inner) // dim
    layouts = [flat] if names != [packed] else [flat.repeat(3), torch.arange(3 * inner) // (3 * dim)]
    sizes = [n for n, v in vars(module).items() if _integer(module, n) and v == inner and not n.startswith("_")]
    for layout in layouts:
        for totals in dict.fromkeys((tuple(sizes), ())):
            cuts = [_attribute(path, attribute, torch.arange(heads))]
            cuts += [_attribute(path, total, flat) for total in totals]
            for n in names:
                tensors = (("weight", 0, False), ("bias", 0, False))
                cuts += cuts_of(network.module, prefix + n, tensors, ("out_features",), layout, "output")
            cuts += cuts_of(network.module, output, (("weight", 1, False),), ("in_features",), flat, "input")
            layers = tuple(sorted((prefix + n for n in names), key=order.index))
            yield Draft(
                root=order[first], channels=heads, layers=layers, consumers=(output,), cuts=tuple(cuts), heads=True
            )


def _attribute(path: str, name: str, entries: Tensor) -> Cut:
    return Cut(path=path, name=name, axis=None, entries=entries, role="between")


def _reads(network: Network, name: str, features: int) -> bool:
    layer = network.layers[name]
    return layer.kind == "linear" and layer.weight_shape[1] == features

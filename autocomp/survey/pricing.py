"""Prices of one unit: its tensors in every storage choice, and what each does to the outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from autocomp.coding.tensors import decode_tensor, encode_tensor
from autocomp.core.encodings import Encoding, FloatTensor
from autocomp.core.network import Layer, Network
from autocomp.core.space import Unit
from autocomp.core.steps import FLOAT, Choice
from autocomp.graph.capture import first_tensor
from autocomp.graph.partial import PrefixRunner
from autocomp.survey.database import Entry
from autocomp.survey.effects import Effects
from autocomp.survey.kept import Kept
from autocomp.transforms.compensate import Hessian
from autocomp.transforms.problem import LayerProblem
from autocomp.transforms.statistics import restore_layer
from autocomp.transforms.weights import compress_layer, rounds_to_nearest

AT_ONCE = 1 << 26
"""Weights of a layer, times choices, that are worked on together: some arrays of so many floats are held at a time.
What choices share (decompositions, column loops) is computed once for each part of them; only layers of millions of
weights have several."""


@dataclass(kw_only=True, eq=False)
class Pricer:
    """Walks the layers once, in order of execution, and prices a unit when its last layer is reached.

    Attributes:
        network: folded float32 network.
        float_tensors: state-dict key → encoding of everything left alone.
        hessians: of the layers' inputs.
        sensitivity: runs a changed layer on to the outputs, on the first calibration images.
        images: the images of ``sensitivity`` [n, ...].
        effects: turns outputs into prices.
        kept: gets the tensors, so that the search need not decode them.
        seed: of random initial values.
    """

    network: Network
    float_tensors: Mapping[str, Encoding]
    hessians: Callable[[str], Hessian | None]
    sensitivity: PrefixRunner
    images: Tensor
    effects: Effects
    kept: Kept
    seed: int = 0
    _waiting: dict[str, dict[Choice, dict[str, bytes]]] = field(default_factory=dict, init=False)
    _tensors: dict[str, dict[Choice, dict[str, Encoding]]] = field(default_factory=dict, init=False)

    def visit(self, layer: Layer, unit: Unit, choices: Sequence[Choice]) -> dict[Choice, Entry] | None:
        """Make the layer's tensors for ``choices``; the unit's entries once all its layers were visited."""
        self.sensitivity.at(layer.name)
        parts = self._waiting.setdefault(unit.name, {c: {} for c in choices})
        tensors = self._tensors.setdefault(unit.name, {c: {} for c in choices})
        is_last, is_only = layer.name == unit.layers[-1], unit.layers == (layer.name,)
        alone: dict[Choice, Tensor] = {}
        # coding is one thread of integer arithmetic: the forward passes run beside it
        with ThreadPoolExecutor(max_workers=1) as coder:
            for made in self._encodings(layer, choices):
                coding = {c: {n: coder.submit(encode_tensor, e) for n, e in t.items()} for c, t in made.items()}
                alone.update({c: self._run_layer(layer, t) for c, t in made.items() if is_only and c != FLOAT})
                for choice, records in coding.items():
                    parts[choice].update({name: record.result() for name, record in records.items()})
                    tensors[choice].update(made[choice])
                    if is_last:
                        self.kept.put(unit.name, choice, tensors.pop(choice))
                del made, coding  # before the next ones are made
        if not is_last:
            return None
        self._tensors.pop(unit.name)
        return {c: self._entry(c, r, alone.get(c)) for c, r in self._waiting.pop(unit.name).items()}

    def _entry(self, choice: Choice, records: dict[str, bytes], outputs: Tensor | None) -> Entry:
        """The price of ``choice``; ``outputs`` are computed here where they are None."""
        if choice == FLOAT:
            return Entry(kl=0.0, delta=np.zeros(self.effects.length, np.float32), records=records)
        outputs = self._run_unit(records) if outputs is None else outputs
        return Entry(kl=self.effects.loss(outputs), delta=self.effects.vector(outputs), records=records)

    def _encodings(self, layer: Layer, choices: Sequence[Choice]) -> Iterator[dict[Choice, dict[str, Encoding]]]:
        """State-dict key → encoding for each choice, with the layer's own output statistics restored.

        Yields:
            As many of the choices as may be held together.
        """
        changed = [c for c in choices if c != FLOAT]
        hessian = None if all(rounds_to_nearest(c) for c in changed) else self.hessians(layer.name)
        problem = LayerProblem.of(self.network, layer.name, hessian=hessian, seed=self.seed)
        restores = layer.bias is not None and not layer.aliases and layer.kind != "embedding"
        target = _joined(layer, self.sensitivity.layer_output()) if restores else None
        keys = [k for k in (layer.weight, layer.bias) if k is not None]
        plain = {k: self.float_tensors[k] for k in keys}
        if FLOAT in choices:
            yield {FLOAT: dict(plain)}
        step = max(1, AT_ONCE // max(1, problem.weight.numel()))
        for part in (changed[i : i + step] for i in range(0, len(changed), step)):
            out: dict[Choice, dict[str, Encoding]] = {}
            for choice, encoding in zip(part, compress_layer(problem, part), strict=True):
                out[choice] = {**plain, layer.weight: encoding}
                exact = isinstance(encoding, FloatTensor) and choice.get("sparsity") is None
                if target is not None and not exact:
                    out[choice] |= self._restored(layer, out[choice], target)
            yield out

    def _restored(self, layer: Layer, tensors: Mapping[str, Encoding], target: Tensor) -> dict[str, Encoding]:
        """The layer's weight and bias with mean and deviation of its output as in ``target``."""
        assert layer.bias is not None
        weight, bias = tensors[layer.weight], tensors[layer.bias]
        assert isinstance(bias, FloatTensor)
        output = _joined(layer, self.sensitivity.layer_output(weight.decode(), bias.decode()))
        new_weight, new_bias = restore_layer(self.network, layer, weight, bias, target, output)
        return {layer.weight: new_weight, layer.bias: new_bias}

    def _run_layer(self, layer: Layer, tensors: Mapping[str, Encoding]) -> Tensor:
        """Outputs with one layer changed."""
        bias = None if layer.bias is None else tensors[layer.bias].decode()
        return self.sensitivity.run(tensors[layer.weight].decode(), bias)

    def _run_unit(self, records: Mapping[str, bytes]) -> Tensor:
        """Outputs with several layers changed together: the whole network runs."""
        tensors = {name: decode_tensor(record).decode() for name, record in records.items()}
        with torch.inference_mode():
            return first_tensor(torch.func.functional_call(self.network.module, tensors, (self.images,)))


def _joined(layer: Layer, outputs: Sequence[Tensor]) -> Tensor:
    """Results of all calls of a layer as one tensor, channels on the axis where one call has them."""
    if len(outputs) == 1:
        return outputs[0]
    if layer.kind == "linear":
        return torch.cat([o.reshape(-1, o.shape[-1]) for o in outputs])
    return torch.cat([o.flatten(2) for o in outputs], dim=2)

"""Deep Compression (Han et al. 2016) on LeNet-300-100 and LeNet-5, stage by stage, and what lies past it.

    python benchmarks/deep_compression.py [--data digits | FILE.npz | FOLDER] [--networks lenet300 lenet5]

Data: "digits" (the default) is scikit-learn's handwritten digits, 8 x 8 pixels brought to 28 x 28: 1,007 training, 390
validation and 400 test images, the same for every seed. FILE.npz holds x_train, y_train, x_test, y_test (28 x 28 grey,
as Keras's mnist.npz); FOLDER holds train/<class>/ and test/<class>/ images, made grey and brought to 28 x 28. Of their
training images the last tenth is for validation. What is chosen is chosen on validation images, test images are
scored once at the end of each stage.
"""

from __future__ import annotations

import argparse
import copy
import math
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import save
from lenets import RECIPES, SIDE, Data, Recipe, load, moved
from torch import Tensor, nn

from autocomp.coding.arrays import decode_integers
from autocomp.coding.coders import coders, huffman, relative_index
from autocomp.coding.container import read_artifact, write_artifact
from autocomp.coding.tensors import describe, encode_tensor
from autocomp.core.encodings import CodebookTensor, Encoding, FloatTensor, QuantizedTensor, round_half
from autocomp.finish._retrain import Retraining, retrain_codebooks, retrain_grids, retrain_masked
from autocomp.transforms.compensate import Hessian
from autocomp.transforms.problem import LayerProblem
from autocomp.transforms.rate import rate_aware
from autocomp.transforms.share import ClusterWeights
from autocomp.transforms.sparsify import Sparsify, sparsify

CALIBRATION_IMAGES = 512
VARIANTS = 9  # of each validation image: a few hundred images alone tell accuracies only coarsely apart
ROUNDS = 3  # of pruning and retraining
LADDER = 5  # rungs below the paper's shares at most, which are rung 0
RUNG = 0.7  # of the weights of one rung that stay on the next
PATIENCE = 2  # rungs that miss before the ladder ends
STEP = 0.7  # of the grids, in root mean squares of the weights that stay
CONV_STEP = STEP / 4  # of convolutions: the paper gives them 8 bits and other layers 5, and they are few
STRENGTH = 0.5  # of the price of bits in rounding
PENALTY = 0.01  # of the mean symbol while grids are trained
DEEP, JOINT = "relative index + Huffman, file", "joint: obc, grids, bits priced"


@torch.no_grad()
def accuracy(module: nn.Module, images: Tensor, classes: Tensor) -> float:
    """Top-1 share."""
    found = torch.cat([module(part).argmax(1) for part in images.split(1000)])
    return float((found == classes).float().mean())


def validation_accuracy(module: nn.Module, data: Data) -> float:
    """On the validation images and, where they are few, moved variants of each."""
    images, classes = data.validation
    generator = torch.Generator().manual_seed(0)
    variants = VARIANTS if len(images) < 2000 else 0
    scores = [accuracy(module, images, classes)]
    scores += [accuracy(module, moved(images, generator), classes) for _ in range(variants)]
    return sum(scores) / len(scores)


@torch.no_grad()
def hessians(module: nn.Module, names: Iterable[str], images: Tensor) -> dict[str, Hessian]:
    """Of each layer's inputs."""
    inputs: dict[str, Tensor] = {}
    handles = [
        module.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0]}))
        for name in names
    ]
    module(images[:CALIBRATION_IMAGES])
    for handle in handles:
        handle.remove()
    return {name: Hessian.of(module.get_submodule(name), [inputs[name]]) for name in names}


def prune(module: nn.Module, keep: dict[str, float], criterion: str, images: Tensor) -> dict[str, Tensor]:
    """Remove weights of ``module`` in place down to ``keep`` of each layer; masks by parameter name.

    For "obc" the weights that stay are refitted. What is zero stays so.
    """
    second = hessians(module, keep, images) if criterion == "obc" else {}
    masks = {}
    for name, share in keep.items():
        weight = module.get_submodule(name).weight
        problem = LayerProblem(name=name, weight=weight.detach(), hessian=second.get(name), mask=weight.detach() != 0)
        made = sparsify(problem, Sparsify(ratio=1 - share, criterion=criterion))
        assert made.mask is not None
        masks[f"{name}.weight"] = made.mask
        weight.data = torch.where(made.mask, made.weight, 0.0)
    return masks


def biases(module: nn.Module, width: int) -> dict[str, Encoding]:
    """All vectors of a module, in 32 bit or in 16."""
    found = {name: p.detach() for name, p in module.named_parameters() if p.dim() == 1}
    return {name: FloatTensor(values=v) if width == 32 else FloatTensor.half(v) for name, v in found.items()}


def as_in_the_paper(encoding: CodebookTensor) -> bytes:
    """The record with its indices by relative indices, or by Huffman where more than half of the weights stay."""
    record = encode_tensor(encoding)
    at = describe(record)["side_bytes"] - 1
    symbols = decode_integers(record[at:], tuple(encoding.symbols.shape))
    coder = relative_index if relative_index.size(symbols) != -1 else huffman
    return record[:at] + bytes([coder.CODE]) + coder.encode(symbols)


def by_coder(encodings: Mapping[str, CodebookTensor | QuantizedTensor]) -> dict[str, dict[str, int]]:
    """Payload bytes of each tensor's integers, by each coder that can code them."""
    found: dict[str, dict[str, int]] = {}
    for key, encoding in encodings.items():
        record = encode_tensor(encoding)
        symbols = decode_integers(record[describe(record)["side_bytes"] - 1 :], tuple(encoding.symbols.shape))
        able = {name: coder for name, coder in coders().items() if coder.size(symbols) != -1}
        found[key] = {name: len(coder.encode(symbols)) for name, coder in able.items()}
    return found


def on_disk(
    module: nn.Module, name: str, tensors: dict[str, Encoding], *, paper: bool = False
) -> tuple[int, nn.Module]:
    """(bytes of the file that holds ``tensors``, the network read back from it), compared bit for bit."""
    records = {
        key: as_in_the_paper(e) if paper and isinstance(e, CodebookTensor) else encode_tensor(e)
        for key, e in tensors.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.autocomp"
        size = write_artifact(path, {"model": name, "classes": 10, "input": [1, SIDE, SIDE]}, records)
        read = read_artifact(path).tensors()
    loaded = copy.deepcopy(module)
    for key, encoding in tensors.items():
        values = read[key].decode()
        if not torch.equal(values.view(torch.int32), encoding.decode().view(torch.int32)):
            raise SystemExit(f"{name}: {key} came back from the file with other bits")
        loaded.get_parameter(key).data = values
    return size, loaded


def plain_bytes(masks: dict[str, Tensor], value_bits: dict[str, int], tables: bool, vectors: int) -> int:
    """Bytes of gaps and values without Huffman codes: gaps in the bits that are best, padding included.

    Args:
        masks: by parameter name.
        value_bits: of one stored value, by layer.
        tables: codebooks of 2**value_bits float32 are stored.
        vectors: numbers in all biases, float32.
    """
    total = 32 * vectors
    for name, bits in value_bits.items():
        mask = masks[f"{name}.weight"].numpy()
        # every weight that stays gets a symbol of its own, so that zero is the most frequent even where few are zero
        symbols = np.where(mask.reshape(-1), np.arange(1, mask.size + 1), 0).astype(np.int32)
        entries = {gap: len(relative_index.entries(symbols, gap)[0]) for gap in range(1, 9)}
        total += min((gap + bits) * many for gap, many in entries.items()) + (32 << bits if tables else 0)
    return (total + 7) // 8


class Run:
    """One network and seed: stages in turn, each with bytes and accuracies."""

    def __init__(self, name: str, recipe: Recipe, data: Data, seed: int) -> None:
        self.name, self.recipe, self.data, self.seed = name, recipe, data, seed
        self.rows: dict[str, dict[str, Any]] = {}
        self.ladder: list[dict[str, float]] = []
        self.training = Retraining(epochs=recipe.epochs, rate=2e-3, weight_decay=0.05, seed=seed, augment=moved)
        self.begin = time.process_time()

    def retraining(self, share: float, **changes: Any) -> Retraining:
        """As the training, for ``share`` of its epochs at half its rate."""
        return replace(self.training, epochs=math.ceil(share * self.recipe.epochs), rate=1e-3, **changes)

    def note(self, stage: str, module: nn.Module, size: int, **facts: Any) -> None:
        """A row of the table."""
        weights = [p for p in module.parameters() if p.dim() > 1]
        kept = sum(int((w != 0).sum()) for w in weights)
        full = 4 * sum(p.numel() for p in module.parameters())
        self.rows[stage] = {
            "bytes": size,
            "smaller": full / size,
            "kept_percent": 100 * kept / sum(w.numel() for w in weights),
            "bits_per_kept_weight": 8 * size / kept,
            "validation": validation_accuracy(module, self.data),
            "test": accuracy(module, *self.data.test),
            "cpu_seconds": time.process_time() - self.begin,
            **facts,
        }
        row = self.rows[stage]
        print(
            f"{self.name} seed {self.seed} {stage:32} {size:9,} bytes {row['smaller']:6.1f}x  "
            f"kept {row['kept_percent']:5.1f} %  validation {100 * row['validation']:.2f} %  "
            f"test {100 * row['test']:.2f} %  {row['cpu_seconds']:.0f} s",
            flush=True,
        )

    def all(self) -> Run:
        """Every stage."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            module = self.recipe.build()
        module = retrain_masked(module, {}, *self.data.train, self.training)
        self.note("float32", module, 4 * sum(p.numel() for p in module.parameters()))
        pruned, masks = self.prune(module)
        self.share(pruned, masks)
        self.past(pruned)
        return self

    def prune(self, module: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
        """By magnitude, in rounds with retraining between them (Han et al. 2015)."""
        pruned, masks = copy.deepcopy(module), {}
        for i in range(1, ROUNDS + 1):
            keep = {name: share ** (i / ROUNDS) for name, share in self.recipe.keep.items()}
            masks = prune(pruned, keep, "magnitude", self.data.train[0])
            config = self.retraining(2 / 3 if i == ROUNDS else 1 / 3)
            pruned = retrain_masked(pruned, masks, *self.data.train, config)
        bits = dict.fromkeys(self.recipe.keep, 32)
        self.note("pruned", pruned, plain_bytes(masks, bits, False, self.vectors(pruned)))
        return pruned, masks

    def share(self, pruned: nn.Module, masks: dict[str, Tensor]) -> None:
        """k-means, codebooks trained, relative indices and Huffman; then the same by the smallest of our coders."""
        encodings = {
            key: ClusterWeights(entries=2**bits, granularity="tensor", weighted=False, initial="linear").encode(
                LayerProblem(name=key, weight=pruned.get_parameter(key).detach(), mask=masks[key])
            )
            for key, bits in ((f"{name}.weight", bits) for name, bits in self.recipe.bits.items())
        }
        config = self.retraining(1 / 4, weight_decay=0.0)
        shared, encodings = retrain_codebooks(pruned, encodings, *self.data.train, replace(config, rate=1e-4))
        self.note("shared", shared, plain_bytes(masks, self.recipe.bits, True, self.vectors(shared)))
        size, loaded = on_disk(shared, self.name, {**encodings, **biases(shared, 32)}, paper=True)
        self.note(DEEP, loaded, size)
        size, loaded = on_disk(shared, self.name, {**encodings, **biases(shared, 32)})
        self.note("the same, smallest coder, file", loaded, size, coders=by_coder(encodings))

    def past(self, pruned: nn.Module) -> None:
        """Fewer weights and coarser grids, rung by rung, while validation is as good as Deep Compression's."""
        aim = max(self.rows[stage]["validation"] for stage in ("float32", DEEP))
        module, misses = pruned, 0
        for rung in range(LADDER + 1):
            keep = {name: share * RUNG**rung for name, share in self.recipe.keep.items()}
            module = copy.deepcopy(module)
            masks = prune(module, keep, "obc", self.data.train[0])
            module = retrain_masked(module, masks, *self.data.train, self.retraining(1))
            encodings = self.on_grids(module, masks)
            config = self.retraining(1, weight_decay=0.0, penalty=PENALTY)
            made, encodings = retrain_grids(module, encodings, *self.data.train, config)
            size, loaded = on_disk(made, self.name, {**encodings, **biases(made, 16)})
            found = validation_accuracy(loaded, self.data)
            print(f"   rung {rung}: {size:,} bytes, validation {100 * found:.2f} % (aim {100 * aim:.2f} %)", flush=True)
            self.ladder.append({"bytes": size, "validation": found, "aim": aim})
            if found >= aim:
                self.note(JOINT, loaded, size, rung=rung, coders=by_coder(encodings))
            misses = 0 if found >= aim else misses + 1
            if misses == PATIENCE:
                break

    def on_grids(self, module: nn.Module, masks: dict[str, Tensor]) -> dict[str, QuantizedTensor]:
        """One step a layer, finer in convolutions, rounded with error compensation and a price for bits."""
        second = hessians(module, self.recipe.keep, self.data.train[0])
        found = {}
        for key, mask in masks.items():
            weight = module.get_parameter(key).detach()
            rows, kept = (v.reshape(1, len(weight), -1) for v in (weight, mask))
            step = CONV_STEP if weight.dim() == 4 else STEP
            scale = round_half(step * rows[kept].square().mean().sqrt().reshape(1))
            zero, most = torch.zeros(1, 1), torch.full((1, 1), 127.0)
            hessian = second[key.removesuffix(".weight")]
            symbols = rate_aware(rows, hessian, scale[None], zero, -most, most, strength=STRENGTH, mask=kept)
            found[key] = QuantizedTensor(symbols=symbols.reshape(weight.shape).short(), scale=scale)
        return found

    def vectors(self, module: nn.Module) -> int:
        """Numbers in all biases."""
        return sum(p.numel() for p in module.parameters() if p.dim() == 1)


def summary(done: list[Run], recipe: Recipe) -> dict[str, Any]:
    """Means over seeds, a stage at a time, beside the paper's figures; then every run."""
    runs = [run.rows for run in done]
    stages = [s for s in runs[0] if all(s in run for run in runs)]
    keys = ("bytes", "smaller", "kept_percent", "bits_per_kept_weight", "validation", "test")
    before, after, error, error_after = recipe.paper
    return {
        "stages": {s: {k: sum(run[s][k] for run in runs) / len(runs) for k in keys} for s in stages},
        "test_range": {s: [f(run[s]["test"] for run in runs) for f in (min, max)] for s in stages},
        "paper": {"bytes": [before, after], "smaller": before / after, "test_error_percent": [error, error_after]},
        "seeds": [run.seed for run in done],
        "epochs": recipe.epochs,
        "runs": runs,
        "ladders": [run.ladder for run in done],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--networks", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--seeds", type=int, nargs="+", default=None)
    parser.add_argument("--epochs", type=int, default=None, help="of the first training (default: the network's own)")
    parser.add_argument("--name", default="deep_compression")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = load(arguments.data)
    sizes = {part: len(getattr(data, part)[0]) for part in ("train", "validation", "test")}
    results: dict[str, Any] = {"data": arguments.data, "images": sizes}
    for name in arguments.networks:
        recipe = RECIPES[name]
        recipe = recipe if arguments.epochs is None else replace(recipe, epochs=arguments.epochs)
        seeds = arguments.seeds or list(recipe.seeds)
        runs = [Run(name, recipe, data, seed).all() for seed in seeds]
        results[name] = summary(runs, recipe)
        print(save(arguments.name, results), flush=True)


if __name__ == "__main__":
    main()

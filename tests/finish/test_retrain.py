"""Retraining: what is zero stays zero, what is shared stays shared, and the loss falls; inputs are untouched."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autocomp.core.encodings import CodebookTensor, QuantizedTensor
from autocomp.errors import ConfigError, DataError
from autocomp.finish._retrain import Retraining, retrain_codebooks, retrain_grids, retrain_masked
from autocomp.transforms.problem import LayerProblem
from autocomp.transforms.share import ClusterWeights

CONFIG = Retraining(epochs=15, batch_size=32, rate=1e-2, seed=3)


@pytest.fixture
def module():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(200, 6, generator=generator)
    return inputs, inputs[:, :3].argmax(1)


@pytest.fixture
def masks(module):
    generator = torch.Generator().manual_seed(2)
    return {f"{i}.weight": torch.rand(module[i].weight.shape, generator=generator) < 0.5 for i in (0, 3)}


def loss_of(module, images):
    with torch.no_grad():
        return float(F.cross_entropy(module.eval()(images[0]), images[1]))


def masked(module, masks):
    made = copy.deepcopy(module)
    for name, mask in masks.items():
        made.get_parameter(name).data *= mask
    return made


def test_removed_weights_stay_zero_and_the_others_learn(module, images, masks):
    before = copy.deepcopy(module.state_dict())
    trained = retrain_masked(module, masks, *images, CONFIG)
    for name, mask in masks.items():
        weight = trained.get_parameter(name)
        assert torch.equal(weight != 0, mask), "and no other is exactly zero"
    assert loss_of(trained, images) < 0.7 * loss_of(masked(module, masks), images)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert not trained.training


def test_weights_of_a_cluster_stay_equal_and_their_entry_learns(module, images, masks):
    encodings = {
        name: ClusterWeights(entries=8, granularity="tensor", weighted=False).encode(
            LayerProblem(name=name, weight=module.get_parameter(name).detach(), mask=mask)
        )
        for name, mask in masks.items()
    }
    before = {name: encoding.codebook.clone() for name, encoding in encodings.items()}
    trained, made = retrain_codebooks(module, encodings, *images, CONFIG)
    started = copy.deepcopy(module)
    for name, encoding in encodings.items():
        started.get_parameter(name).data = encoding.decode()
        assert isinstance(made[name], CodebookTensor)
        assert torch.equal(made[name].symbols, encoding.symbols)
        assert torch.equal(trained.get_parameter(name), made[name].decode())
        assert not bool(made[name].decode()[~masks[name]].any())
        assert not torch.equal(made[name].codebook, before[name])
        assert torch.equal(encoding.codebook, before[name])
    assert loss_of(trained, images) < loss_of(started, images)


def test_an_entrys_gradient_is_the_sum_over_its_cluster():
    """One step of a learning rate so small that Adam only shows the gradient's sign."""
    module = nn.Linear(2, 2, bias=False)
    book = torch.tensor([[[-1.0], [0.0], [1.0]]])
    encoding = CodebookTensor(
        symbols=torch.tensor([[2, 2], [0, 1]], dtype=torch.int16), codebook=book, scale=torch.ones(1), shape=(2, 2)
    )
    # both weights of entry 1.0 meet inputs of opposite sign; the second is larger and decides
    inputs, targets = torch.tensor([[1.0, -3.0]]), torch.tensor([0])
    config = Retraining(epochs=1, batch_size=1, rate=2**-4)
    _, made = retrain_codebooks(module, {"weight": encoding}, inputs, targets, config)
    change = made["weight"].codebook - book
    assert change[0, 2, 0] == pytest.approx(-(2**-4), rel=0.02)
    assert change[0, 1, 0] == 0


def grids(module, masks, step=0.15):
    return {
        name: QuantizedTensor(
            symbols=(module.get_parameter(name).detach() * mask / step).round().short(), scale=torch.tensor([step])
        )
        for name, mask in masks.items()
    }


def test_grids_keep_scales_and_zeros_and_learn(module, images, masks):
    encodings = grids(module, masks)
    trained, made = retrain_grids(module, encodings, *images, CONFIG)
    started = copy.deepcopy(module)
    for name, encoding in encodings.items():
        started.get_parameter(name).data = encoding.decode()
        assert torch.equal(made[name].scale, encoding.scale)
        assert made[name].symbols.dtype == torch.int16
        assert not bool(made[name].symbols[encoding.symbols == 0].any())
        assert torch.equal(trained.get_parameter(name), made[name].decode())
    assert loss_of(trained, images) < 0.7 * loss_of(started, images)


def test_the_penalty_makes_symbols_zero(module, images, masks):
    counts = []
    for penalty in (0.0, 0.5):
        config = Retraining(epochs=15, batch_size=32, rate=1e-2, penalty=penalty)
        _, made = retrain_grids(module, grids(module, masks), *images, config)
        counts.append(sum(int((e.symbols != 0).sum()) for e in made.values()))
    assert counts[1] < 0.7 * counts[0]


def test_nominal_bits_bound_the_symbols(module, images, masks):
    encodings = {
        name: QuantizedTensor(symbols=e.symbols.clamp(-1, 1), scale=e.scale, bits=2)
        for name, e in grids(module, masks).items()
    }
    _, made = retrain_grids(module, encodings, *images, CONFIG)
    assert all(int(e.symbols.abs().max()) == 1 for e in made.values())


def test_the_same_seed_gives_the_same_network_and_leaves_the_global_state(module, images, masks):
    state = torch.random.get_rng_state()
    first, second = (retrain_masked(module, masks, *images, CONFIG) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_no_epochs_only_apply_the_mask(module, images, masks):
    trained = retrain_masked(module, masks, *images, Retraining(epochs=0))
    for name, value in masked(module, masks).named_parameters():
        assert torch.equal(trained.get_parameter(name), value)


def test_what_cannot_be_is_refused(module, images, masks):
    with pytest.raises(ConfigError, match="rate"):
        Retraining(rate=-1.0)
    with pytest.raises(DataError, match="0 images"):
        retrain_masked(module, masks, images[0][:0], images[1][:0], CONFIG)
    with pytest.raises(DataError, match="not finite"):
        retrain_masked(module, masks, images[0] * float("nan"), images[1], CONFIG)
    encoding = QuantizedTensor(symbols=torch.ones(16, 6).short(), scale=torch.ones(1), zero_point=torch.ones(1).short())
    with pytest.raises(DataError, match="zero point"):
        retrain_grids(module, {"0.weight": encoding}, *images, CONFIG)

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from autocomp.coding.container import stored_bytes
from autocomp.coding.tensors import decode_tensor, encode_tensor
from autocomp.core.candidate import Candidate
from autocomp.core.encodings import Encoding
from autocomp.core.prices import PriceTable
from autocomp.core.progress import Silent
from autocomp.core.steps import FLOAT, Choice
from autocomp.errors import CorruptFileError, DataError
from autocomp.evaluators import artifact
from autocomp.evaluators.quality import kl_divergence
from autocomp.graph.placement import quantized_values
from autocomp.graph.simulate import simulated
from autocomp.survey import pricing
from autocomp.survey.database import UnitFile
from autocomp.survey.execution import executed_layers
from autocomp.survey.stored import Survey, load_survey, sensitivity_table
from autocomp.survey.together import _coarse
from autocomp.transforms.problem import LayerProblem
from autocomp.transforms.quantize import QuantizeActivations, QuantizeWeights
from autocomp.transforms.statistics import FloatStatistics, restore_statistics
from autocomp.transforms.stitch import stitch
from autocomp.transforms.weights import compress_layer
from tests.survey.conftest import PROFILE, Case

INT8 = QuantizeActivations()


def random_candidate(prices: PriceTable, rng: np.random.Generator, *, coarsest: int | None = None) -> Candidate:
    picks = {}
    for unit, p in prices.storage.items():
        choice = p.choices[int(rng.integers(len(p.choices) if coarsest is None else coarsest))]
        runs = rng.random() < 0.5 and unit in prices.execution
        picks[unit] = Choice((*choice.steps, INT8)) if runs else choice
    return Candidate(picks)


def assert_same(a: PriceTable, b: PriceTable) -> None:
    assert (a.fixed_bytes, a.lines) == (b.fixed_bytes, b.lines)
    for left, right in ((a.storage, b.storage), (a.execution, b.execution)):
        assert list(left) == list(right)
        for unit in left:
            assert left[unit].choices == right[unit].choices
            np.testing.assert_array_equal(left[unit].bytes, right[unit].bytes)
            np.testing.assert_array_equal(left[unit].kl, right[unit].kl)
            np.testing.assert_array_equal(left[unit].delta, right[unit].delta)


def written_bytes(case: Case, found: Survey, candidate: Candidate, path: Path) -> int:
    """Size of the candidate's file, its statistics restored."""
    layers = executed_layers(case.space(), [u for u, c in candidate.items() if c.precision == "int8"], "int8")
    values = quantized_values(case.network, layers, PROFILE.placement)
    storage = Candidate({u: c.storage() for u, c in candidate.items()})
    model = stitch(case.network, storage, found.database.lookup)
    batches = case.calibration[:1]
    model = restore_statistics(case.network, model, batches, FloatStatistics.of(case.network, batches))
    model = model.replace(activations={k: found.quantizers[k, "int8"] for k in values})
    return artifact.save(path, case.workload, case.network, model, artifact.records(model))


def test_prices_are_the_bytes_of_the_records_and_the_records_are_the_encodings(case: Case, found: Survey) -> None:
    for unit, prices in found.prices.storage.items():
        assert prices.choices[0] == FLOAT
        assert (np.diff(prices.bytes) <= 0).all()
        for choice, size in zip(prices.choices, prices.bytes, strict=True):
            records, encodings = found.database.records(unit, choice), found.database.lookup(unit, choice)
            # restored together with all others, a few more values among the scales
            assert sum(stored_bytes(len(r)) for r in records.values()) == pytest.approx(int(size), rel=0.005, abs=8)
            for name, encoding in encodings.items():
                assert len(encode_tensor(encoding)) == len(records[name])
                assert torch.equal(decode_tensor(records[name]).decode(), encoding.decode())


def test_predicted_file_is_the_written_file(case: Case, found: Survey, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        candidate = random_candidate(found.prices, rng)
        written = written_bytes(case, found, candidate, tmp_path / "x.autocomp")
        # 48 bytes: values that one int8 unit quantizes alone and all together do not are in no price
        assert abs(found.prices.file_bytes(candidate) - written) <= max(48, 0.002 * written)


def test_a_record_has_its_place_in_the_directory_priced(case: Case, found: Survey, tmp_path: Path) -> None:
    """Uncompressed there is nothing to restore, so the prediction is off by what float32 gains would add at most."""
    whole = artifact.records(stitch(case.network, Candidate({}), found.database.lookup))
    units = [unit.layers for unit in case.space().units.values()]
    decided = [
        k for names in units for n in names for k in (case.network.layers[n].weight, case.network.layers[n].bias)
    ]
    written = written_bytes(case, found, Candidate({}), tmp_path / "x.autocomp")
    assert written == found.prices.fixed_bytes + sum(stored_bytes(len(whole[k])) for k in decided)


def test_a_file_of_coarse_choices_has_the_sizes_that_were_measured_together(case: Case, found: Survey) -> None:
    choices = {u: p.choices for u, p in found.prices.storage.items()}
    coarse = _coarse(choices, found.database)
    model = stitch(case.network, coarse, found.database.lookup)
    batches = case.calibration[:1]
    model = restore_statistics(case.network, model, batches, FloatStatistics.of(case.network, batches))
    for unit, prices in found.prices.storage.items():
        layer = case.network.layers[unit]
        weight, bias = (encode_tensor(model.tensors[k]) for k in (layer.weight, layer.bias))
        alone = found.database.records(unit, coarse[unit])[layer.bias]  # biases are priced as they are alone
        size = int(prices.bytes[prices.index(coarse[unit])])
        assert size == stored_bytes(len(weight)) + stored_bytes(len(alone))
        assert abs(len(bias) - len(alone)) <= 3


def test_sizes_are_kept_and_made_anew_where_damaged(case: Case, tmp_path: Path) -> None:
    first = case.survey(tmp_path).prices
    (path,) = (tmp_path / "survey").glob("*.json")
    good = path.read_bytes()
    path.write_bytes(good[:-9])
    assert_same(case.survey(tmp_path).prices, first)
    assert path.read_bytes() == good


def test_large_layers_are_priced_a_few_choices_at_a_time(
    case: Case, found: Survey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that memory is bounded; nothing depends on which choices are worked on together."""
    together: list[int] = []

    def counted(problem: LayerProblem, choices: Sequence[Choice]) -> list[Encoding]:
        together.append(len(choices))
        return compress_layer(problem, choices)

    monkeypatch.setattr(pricing, "compress_layer", counted)
    monkeypatch.setattr(pricing, "AT_ONCE", 3 * 12 * 12 * 9)
    prices = case.survey(tmp_path).prices
    assert set(together) == {8, 3, 2}  # all of the small stem, 3 + 3 + 2 of a convolution, 2 of the head
    assert_same(prices, found.prices)


def test_kl_of_a_choice_is_that_of_the_network_with_only_this_choice(case: Case, found: Survey) -> None:
    images = torch.cat(case.calibration)[:96]
    with torch.inference_mode():
        reference = case.network.module(images)
        for unit, prices in found.prices.storage.items():
            for choice, kl in zip(prices.choices, prices.kl, strict=True):
                model = stitch(case.network, Candidate({unit: choice}), found.database.lookup)
                true = kl_divergence(reference, simulated(case.network, model)(images))
                # the rest of the stitched network has float16 biases, the survey's has float32 ones
                assert kl == pytest.approx(true, rel=0.02, abs=2e-5)


def test_predicted_kl_ranks_candidates_as_the_true_one(case: Case, found: Survey) -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy ranks here")
    rng = np.random.default_rng(1)
    images = torch.cat(case.calibration)[:96]
    predicted, true = [], []
    with torch.inference_mode():
        reference = case.network.module(images)
        for _ in range(60):
            candidate = random_candidate(found.prices, rng, coarsest=7)
            storage = Candidate({u: c.without("activations") for u, c in candidate.items()})
            model = stitch(case.network, storage, found.database.lookup)
            predicted.append(found.prices.predicted_kl(storage))
            true.append(kl_divergence(reference, simulated(case.network, model)(images)))
    assert stats.kendalltau(predicted, true).statistic > 0.75


def test_int8_everywhere_is_the_sum_of_each_value_once(case: Case, found: Survey) -> None:
    images = torch.cat(case.calibration)[:96]
    every = Candidate({u: Choice((INT8,)) for u in found.prices.execution})
    model = stitch(case.network, every, found.database.lookup).replace(
        activations={key: q for (key, _), q in found.quantizers.items()}
    )
    with torch.inference_mode():
        true = kl_divergence(case.network.module(images), simulated(case.network, model)(images))
    assert found.prices.predicted_kl(every) == pytest.approx(true, rel=0.5, abs=1e-4)
    for unit, prices in found.prices.execution.items():
        assert prices.choices == (FLOAT, Choice((INT8,)))
        assert prices.kl[0] == 0
        assert prices.kl[1] > 0, unit


class Interrupt(Silent):
    """Stops after so many units."""

    def __init__(self, after: int) -> None:
        self.left = after
        self.done = 0

    def stage(self, name: str, total: int | None = None, done: int = 0) -> None:
        self.done = done

    def advance(self, steps: int = 1, **facts: object) -> None:
        self.left -= steps
        if self.left == 0:
            raise KeyboardInterrupt


def test_an_interrupted_survey_goes_on_and_finds_the_same(case: Case, found: Survey, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        case.survey(tmp_path, progress=Interrupt(2))
    with pytest.raises(CorruptFileError, match="run again"):
        load_survey(case.network, case.space(), tmp_path)
    units = sorted((tmp_path / "survey").iterdir())
    units[0].write_bytes(units[0].read_bytes()[:-5])  # torn by a full disk
    progress = Interrupt(100)
    again = case.survey(tmp_path, progress=progress)
    assert progress.done == 1
    assert_same(again.prices, found.prices)
    assert again.quantizers == found.quantizers


def test_another_process_reads_the_same(case: Case, tmp_path: Path) -> None:
    made = case.survey(tmp_path)
    read = load_survey(case.network, case.space(), tmp_path)
    assert_same(made.prices, read.prices)
    assert made.quantizers == read.quantizers
    assert read.seconds > 0


def test_only_new_choices_are_priced(case: Case, found: Survey, tmp_path: Path) -> None:
    case.survey(tmp_path, case.space(weights={"bits": [16, 8], "steps": [0.1, 0.3]}))
    before = {p.name for p in (tmp_path / "survey").glob("*.unit")}
    progress = Interrupt(100)
    wider = case.survey(tmp_path, progress=progress)
    assert progress.done == 1  # int8 execution is the same
    assert {p.name for p in (tmp_path / "survey").glob("*.unit")} == before
    for unit, prices in wider.prices.storage.items():
        assert prices.choices == found.prices.storage[unit].choices
        np.testing.assert_allclose(prices.kl, found.prices.storage[unit].kl, rtol=1e-3, atol=1e-7)
    narrow = load_survey(case.network, case.space(), tmp_path)
    assert_same(narrow.prices, wider.prices)


def test_a_shared_folder_is_priced_once_and_may_be_moved(case: Case, found: Survey, tmp_path: Path) -> None:
    shared = tmp_path / "all" / "shared"
    first = case.survey(tmp_path / "all" / "a", shared=shared)
    written = {p: p.stat().st_mtime_ns for p in (shared / "survey").iterdir()}
    progress = Interrupt(100)
    second = case.survey(tmp_path / "all" / "b", shared=shared, progress=progress)
    assert progress.done == sum(p.suffix == ".unit" for p in written)  # besides them the lock and the sizes
    assert {p: p.stat().st_mtime_ns for p in (shared / "survey").iterdir()} == written
    (tmp_path / "all").rename(tmp_path / "moved")
    moved = load_survey(case.network, case.space(), tmp_path / "moved" / "b")
    for survey in (first, second, moved):
        assert_same(survey.prices, found.prices)


ADDS = """
import pathlib, sys
import numpy as np
from autocomp.survey.database import Entry, add_to_unit
path, name = pathlib.Path(sys.argv[1]), sys.argv[2]
for i in range(40):
    own = {f"{name}{i}": Entry(kl=float(i), delta=np.ones(3, np.float32), records={"w": name.encode()})}
    both = {f"both{i}": Entry(kl=float(i), delta=np.ones(3, np.float32), records={"w": name.encode()})}
    add_to_unit(path, own, 1.0)
    print(int(add_to_unit(path, both, 1.0)), flush=True)
"""


def test_two_processes_add_to_one_file_and_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.unit"
    both = [
        subprocess.Popen([sys.executable, "-c", ADDS, path, name], stdout=subprocess.PIPE, text=True) for name in "ab"
    ]
    first = {}
    for name, child in zip("ab", both, strict=True):
        out, _ = child.communicate(timeout=120)
        assert child.returncode == 0
        first[name] = [bool(int(line)) for line in out.split()]
    file = UnitFile(path)
    assert set(file.choices()) == {f"{name}{i}" for name in ("a", "b", "both") for i in range(40)}
    assert file.seconds == 160.0
    for i in range(40):  # one of them was first, was told so, and its tensors stay
        assert first["a"][i] != first["b"][i]
        assert file.records(f"both{i}") == {"w": b"a" if first["a"][i] else b"b"}


def test_a_group_is_priced_together(case: Case, found: Survey, tmp_path: Path) -> None:
    space = case.space(group=[{"name": "block", "layers": ["conv1", "conv2"]}])
    grouped = case.survey(tmp_path, space)
    prices = grouped.prices.storage["block"]
    choice = Choice((QuantizeWeights(step=0.6),))
    at = prices.index(choice)
    assert set(grouped.database.lookup("block", choice)) == {"conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"}
    alone = [found.prices.storage[u] for u in ("conv1", "conv2")]
    assert abs(prices.bytes[at] - sum(int(p.bytes[p.index(choice)]) for p in alone)) <= 8
    stitched = stitch(case.network, Candidate({"block": choice}), grouped.database.lookup)
    assert all(stitched.tensors[f"conv{i}.weight"].bits is None for i in (1, 2))
    assert stitched.tensors["stem.weight"].width == 32
    together = Candidate({"conv1": choice, "conv2": choice})
    assert 0.5 * float((prices.delta[at].astype(float) ** 2).sum()) == pytest.approx(
        found.prices.predicted_kl(together), rel=0.35
    )


def test_sensitivity_table_has_a_row_a_choice(found: Survey) -> None:
    rows = sensitivity_table(found)
    tables = (found.prices.storage, found.prices.execution)
    assert len(rows) == sum(len(p.choices) for t in tables for p in t.values())
    for row in rows:
        assert set(row) == {"unit", "axis", "choice", "bytes", "kl", "predicted_kl"}
        if row["choice"] in ("k0.1", "8b"):
            assert row["predicted_kl"] == pytest.approx(row["kl"], rel=0.3, abs=1e-5)


def test_no_images_is_one_clear_line(case: Case, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no calibration images"):
        case.survey(tmp_path, calibration=[])

"""A summary as a real run would give it, made in milliseconds: for tests of reports and tables."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import TYPE_CHECKING, Any

from autocomp.core.candidate import Candidate
from autocomp.core.result import LayerReport, RunSummary
from autocomp.core.row import Row
from autocomp.core.settings import Settings
from autocomp.core.steps import Choice
from autocomp.transforms.quantize import QuantizeActivations, QuantizeWeights

if TYPE_CHECKING:
    import numpy as np

STEPS = (0.1, 0.25, 0.5, 0.7, 1.0, 1.4, 2.0)
FLOAT32_SCORE, TEST_IMAGES = 0.9889, 360


def resnet18_layers() -> list[tuple[str, str, tuple[int, ...], int]]:
    """(name, kind, weight shape, output side in pixels) of ResNet-18 at 3 x 32 x 32, ten classes."""
    layers: list[tuple[str, str, tuple[int, ...], int]] = [("conv1", "conv2d", (64, 3, 7, 7), 16)]
    width, side = 64, 8
    for stage, channels in enumerate((64, 128, 256, 512), start=1):
        side = side if stage == 1 else side // 2
        for block in range(2):
            name = f"layer{stage}.{block}"
            first = width if block == 0 else channels
            layers.append((f"{name}.conv1", "conv2d", (channels, first, 3, 3), side))
            layers.append((f"{name}.conv2", "conv2d", (channels, channels, 3, 3), side))
            if block == 0 and first != channels:
                layers.append((f"{name}.downsample.0", "conv2d", (channels, first, 1, 1), side))
        width = channels
    layers.append(("fc", "linear", (10, 512), 1))
    return layers


def fake_summary(
    *, trials: int = 40, seed: int = 0, budget_bytes: int | None = 4_000_000, latency: bool = True
) -> RunSummary:
    """The summary of a search for ResNet-18 on digits; the same arguments give the same value.

    Args:
        trials: evaluated rows.
        seed: of everything random.
        budget_bytes: the budget; where nothing is as small, ``best`` is None and ``nearest`` is filled.
        latency: whether rows carry latencies.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    layers = resnet18_layers()
    weights = {name: math.prod(shape) for name, _, shape, _ in layers}
    sensitivity = {name: 0.004 * float(rng.lognormal(sigma=0.9)) for name in weights}
    float32 = _float32(weights, latency=latency)
    rows = tuple(
        _trial(i, weights, sensitivity, rng, budget_bytes, latency=latency, strength=i / max(1, trials - 1))
        for i in range(trials)
    )
    feasible = [r for r in rows if r.feasible]
    chosen = max(feasible, key=lambda r: (r.score_search, -r.kl_search, -r.file_bytes), default=None)
    best = None if chosen is None else _finished(chosen)
    settings = Settings(budget_bytes=budget_bytes, budget_text="4MB", max_drop=0.01)
    return RunSummary(
        run="/runs/resnet18-4MB-cpu-onnxruntime-s0",
        model="resnet18",
        data="digits",
        target="cpu-onnxruntime",
        budget_bytes=budget_bytes,
        constraints={"max_drop": 0.01},
        metric={"name": "accuracy", "direction": "maximize", "unit": "fraction"},
        float32=float32,
        best=best,
        baselines=_baselines(weights, budget_bytes, latency=latency),
        pareto=pareto(rows),
        trials=rows,
        evaluations=len(rows),
        cache_hits=3,
        failures={"latency/timeout": 1, "build/UnsupportedError": 2},
        seconds={
            "load": 1.4,
            "survey": 41.2,
            "plan": 0.6,
            "search": 88.9,
            "finish": 21.5,
            "pack": 2.2,
            "report": 1.1,
        },
        versions={"autocomp": "0.1.0", "torch": "2.13.0", "onnxruntime": "1.31.1", "optuna": "5.0.0"},
        settings=json.loads(json.dumps(settings.to_json())),
        environment={"machine": "x86_64", "cpu": "8-core CPU", "threads": 2, "python": "3.11.7", "commit": "0" * 40},
        layers=() if best is None else _layers(layers, best, sensitivity),
        skipped=(("bn1.running_mean", "buffer of 64 elements: 16 bit storage already costs nothing measurable"),),
        notes=("int8 is not faster here: the CPU has no VNNI instructions; the engine runs float32",),
        nearest={} if best else {"file_bytes": float(min((r.file_bytes for r in rows), default=0))},
    )


def pareto(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """Rows that no other row beats in loss and bytes, by falling bytes (plain, quadratic)."""
    front = [
        row
        for row in rows
        if not any(
            o.file_bytes <= row.file_bytes
            and o.kl_search <= row.kl_search
            and (o.file_bytes, o.kl_search) != (row.file_bytes, row.kl_search)
            for o in rows
        )
    ]
    return tuple(sorted(front, key=lambda r: -r.file_bytes))


def _bits(step: float) -> float:
    """Entropy of a Gaussian on a grid of ``step`` deviations, bits a weight (a bound below for wide steps)."""
    return max(0.35, math.log2(math.sqrt(2 * math.pi * math.e) / step))


def _score(kl: float) -> float:
    return max(0.1, FLOAT32_SCORE - 0.09 * math.pow(kl, 1.5))


def _float32(weights: dict[str, int], *, latency: bool) -> Row:
    return Row(
        name="float32",
        file_bytes=4 * (sum(weights.values()) + 9_610),
        engine_bytes=44_790_112 if latency else None,
        score_search=0.9917,
        score_test=FLOAT32_SCORE,
        score_test_ci95=(0.9718, 0.9957),
        kl_search=0.0,
        latency_ms=2.84 if latency else None,
        latency_ms_ci95=(2.80, 2.91) if latency else None,
        latency_source="measured" if latency else None,
    )


def _trial(
    number: int,
    weights: dict[str, int],
    sensitivity: dict[str, float],
    rng: np.random.Generator,
    budget_bytes: int | None,
    *,
    latency: bool,
    strength: float,
) -> Row:
    share = float(rng.choice([0.0, 0.6, 1.0]))
    choices = {}
    size, kl = 21_400.0, 0.001 * float(rng.random())
    for name, count in weights.items():
        index = _clip(round(strength * (len(STEPS) - 1) + rng.normal(scale=0.8)), len(STEPS) - 1)
        step = STEPS[index]
        size += count * _bits(step) / 8
        kl += sensitivity[name] * step**2
        steps: tuple[Any, ...] = (QuantizeWeights(step=step),)
        choices[name] = Choice((*steps, QuantizeActivations()) if rng.random() < share else steps)
    candidate = Candidate(choices)
    duration = 2.86 - 1.55 * share + float(rng.normal(scale=0.03))
    score = round(_score(kl) * TEST_IMAGES) / TEST_IMAGES
    return Row(
        name=f"trial {number}",
        trial=number,
        candidate=candidate.id,
        feasible=(budget_bytes is None or size <= budget_bytes) and score >= 0.9917 - 0.01,
        file_bytes=int(size),
        engine_bytes=int(44_790_112 - 33_400_000 * share) if latency else None,
        score_search=score,
        kl_search=kl,
        latency_ms=duration if latency else None,
        latency_ms_ci95=(duration - 0.04, duration + 0.05) if latency else None,
        latency_source="measured" if latency else None,
        techniques=tuple(candidate.techniques()),
        recipe=candidate.to_json(),
    )


def _clip(value: float, high: int) -> int:
    """``value`` brought into [0, high]."""
    return int(min(max(value, 0), high))


def _finished(row: Row) -> Row:
    return dataclasses.replace(
        row,
        name="best",
        file="/runs/resnet18-4MB-cpu-onnxruntime-s0/model.autocomp",
        score_test=0.9861,
        score_test_ci95=(0.9678, 0.9940),
        notes=("compensated rounding, statistics restored",),
    )


def _baselines(weights: dict[str, int], budget_bytes: int | None, *, latency: bool) -> dict[str, Row]:
    total = sum(weights.values())
    table = {
        "float16": (2.0, 0.9917, 1e-6, 2.85, ("quantize_weights",)),
        "int8": (0.93, 0.9889, 4e-3, 1.30, ("quantize_activations", "quantize_weights")),
        "uniform-4bit": (0.47, 0.9111, 0.31, 2.86, ("quantize_weights",)),
        "fastest": (4.0, 0.9889, 2e-3, 1.29, ("quantize_activations",)),
    }
    return {
        name: Row(
            name=name,
            feasible=budget_bytes is None or total * ratio <= budget_bytes,
            file_bytes=int(total * ratio) + 24_000,
            engine_bytes=11_400_000 if latency else None,
            score_search=score,
            score_test=score - 0.0028,
            score_test_ci95=(score - 0.02, min(1.0, score + 0.006)),
            kl_search=kl,
            latency_ms=duration if latency else None,
            latency_ms_ci95=(duration - 0.03, duration + 0.04) if latency else None,
            latency_source="measured" if latency else None,
            techniques=techniques,
        )
        for name, (ratio, score, kl, duration, techniques) in table.items()
    }


def _layers(
    layers: list[tuple[str, str, tuple[int, ...], int]], best: Row, sensitivity: dict[str, float]
) -> tuple[LayerReport, ...]:
    candidate = Candidate.from_json(best.recipe)
    out = []
    for name, kind, shape, side in layers:
        count = math.prod(shape)
        choice = candidate[name]
        weights = choice.get("weights")
        step = weights.step if isinstance(weights, QuantizeWeights) and weights.step is not None else 1.0
        coded = int(count * _bits(step) / 8) + 2 * shape[0]
        out.append(
            LayerReport(
                layer=name,
                kind=kind,
                shape=shape,
                parameters=count,
                macs=count * side * side,
                choice=choice.label(),
                coded_bytes=coded,
                bits_per_weight=8 * coded / count,
                kl=sensitivity[name] * step**2,
                executes="int8" if choice.get("activations") else "float32",
                prices=tuple((f"k{s:g}", int(count * _bits(s) / 8), sensitivity[name] * s**2) for s in STEPS),
            )
        )
    return tuple(out)

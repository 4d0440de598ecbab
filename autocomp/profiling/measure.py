"""Measuring a device that is here: ``autocomp profile TARGET``.

Small engines are built and timed one by one; each figure is kept at once in a file beside the profile, so that an
interrupted run goes on where it stopped. From them come the profile's numbers and a latency table.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
import time
import tomllib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autocomp import environment
from autocomp.core.hardware import Target
from autocomp.core.progress import Progress
from autocomp.core.run_folder import storage_errors, write_atomic
from autocomp.errors import ConfigError, UnsupportedError
from autocomp.profiling.operations import operations
from autocomp.profiling.probes import Probe, probes
from autocomp.profiling.table import Sample, fit

WARM_UP, LEAST_RUNS, MOST_RUNS, PROBE_S = 5, 15, 300, 0.2
MULTIPLES = (1, 4, 8, 16, 32)
PROBED = ("float32", "float16", "int8", "float8")
CHECKED = ("float16", "float8")
"""Precisions that runtimes replace by another without a word: their engines have to say that they run in them."""


def profile_device(target: Target, out: Path, progress: Progress) -> Path:
    """Measure ``target``'s device and write a hardware profile.

    Args:
        target: whose device is here; precisions, placement and options are taken over from its profile.
        out: TOML file to write. Beside it: ``<name>.measured.json`` (raw figures; what it holds is not measured again),
            ``<name>.latency.json`` (the latency table) and ``<name>.operators.csv``.
        progress: is told each engine.

    Raises:
        UnsupportedError: the device is not here; the message says what to do.
        ConfigError: ``out`` is no TOML file, or its figures are of another device.
    """
    why = target.cannot_measure()
    if why is not None:
        raise UnsupportedError(f"target {target.profile.name} cannot be measured here: {why}")
    if out.suffix != ".toml":
        raise ConfigError(f"--out {out}: give a file that ends in .toml")
    measured = _measured(target, out, progress)
    table = fit([_sample(target, probe, measured[probe.key]) for probe in _run(target, measured)], facts=_facts(target))
    table.save(out.with_suffix(".latency.json"))
    with storage_errors(out):
        write_atomic(out.with_suffix(".operators.csv"), _csv(measured))
        write_atomic(out, _toml(target, out, measured))
    return out


def _wanted(target: Target) -> list[Probe]:
    runs = {p for kind in ("conv2d", "linear") for p in target.profile.precisions.get(kind, ())}
    return list(probes([p for p in PROBED if p in runs]))


def _run(target: Target, measured: Mapping[str, Sequence[float]]) -> list[Probe]:
    """The probes of precisions that the runtime really ran in."""
    refused = {p for probe in _wanted(target) if not measured[probe.key] for p in probe.precisions if p in CHECKED}
    return [probe for probe in _wanted(target) if not refused.intersection(probe.precisions)]


def _measured(target: Target, out: Path, progress: Progress) -> dict[str, list[float]]:
    """Probe key → seconds of each run, none where another precision ran; written after each probe."""
    path, facts = out.with_suffix(".measured.json"), _facts(target)
    known: dict[str, list[float]] = {}
    if path.is_file():
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            versions, known = data["facts"]["versions"], dict(data["seconds"])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} holds no figures ({error}); choose another --out or remove it") from error
        if versions != facts["versions"]:
            raise ConfigError(f"{path} holds figures of {versions}; choose another --out or remove it")
    wanted = _wanted(target)
    progress.stage("profile", total=len(wanted), done=sum(probe.key in known for probe in wanted))
    for probe in wanted:
        if probe.key in known:
            continue
        known[probe.key], why = _times_s(target, probe)
        if why:
            progress.note(f"{probe.key}: {why}; {'/'.join(probe.precisions)} is left out of the profile's figures")
        with storage_errors(path):
            write_atomic(path, json.dumps({"facts": facts, "seconds": known}).encode())
        progress.advance(probe=probe.key)
    return known


def _times_s(target: Target, probe: Probe) -> tuple[list[float], str]:
    """Seconds of each run; none, and why, where the runtime does not run the probe's precision."""
    plan = target.runtime.build(probe.model(target.profile.placement), target.profile, probe.example())
    others = set(plan.layers.values()) - set(probe.precisions)
    if others and set(CHECKED).intersection(probe.precisions):
        return [], f"{target.profile.runtime} runs it in {'/'.join(sorted(others))}"
    engine = target.runtime.load(plan, target.profile, probe.example())
    try:
        for _ in range(WARM_UP):
            engine.time_once_s()
        taken: list[float] = []
        start = time.perf_counter()
        while len(taken) < LEAST_RUNS or (len(taken) < MOST_RUNS and time.perf_counter() - start < PROBE_S):
            taken.append(engine.time_once_s())
    finally:
        engine.close()
    return taken, ""


def _sample(target: Target, probe: Probe, times_s: Sequence[float]) -> Sample:
    found = operations(probe.model(target.profile.placement))
    return Sample(operations=found, seconds=statistics.median(times_s))


def _facts(target: Target) -> dict[str, Any]:
    runtime = target.runtime
    device = runtime.versions().get("device", str(environment.cpu()["model"]))
    return {"date": datetime.now(UTC).date().isoformat(), "device": device, "versions": runtime.versions()}


def figures(target: Target, measured: Mapping[str, Sequence[float]]) -> tuple[dict[str, float], dict[str, int]]:
    """``[numbers]`` in base units, and ``[channel_multiple]``, out of the probes' seconds.

    Peaks are of the fastest run, everything else of the median.
    """
    fastest = {probe: min(measured[probe.key]) for probe in _run(target, measured)}
    medians = {probe: statistics.median(measured[probe.key]) for probe in _run(target, measured)}
    numbers: dict[str, float] = {}
    multiples: dict[str, int] = {}
    for probe in medians:
        if probe.purpose == "operators" and probe.kind in ("conv2d", "linear"):
            macs = sum(o.macs for o in operations(probe.model(target.profile.placement)))
            name = f"peak_{probe.precisions[0]}_ops_per_s"
            numbers[name] = max(numbers.get(name, 0.0), 2 * macs / fastest[probe])
        if probe.purpose == "copy":
            moved = 2 * 4 * probe.channels[0] * probe.size**2
            name = "memory_bandwidth_bytes_per_s"
            numbers[name] = max(numbers.get(name, 0.0), moved / fastest[probe])
    for precision in {p.precisions[0] for p in medians if p.purpose == "channels"}:
        steps = {
            p.channels[0]: s for p, s in medians.items() if p.purpose == "channels" and p.precisions[0] == precision
        }
        multiples[precision] = channel_multiple(steps)
    chains = {len(p.precisions): s for p, s in medians.items() if p.purpose == "overhead"}
    longest = max(chains)
    each = (chains[longest] - chains[1]) / (longest - 1)
    if each > 0:
        numbers["launch_overhead_s"] = each
    return numbers, multiples


def channel_multiple(seconds: Mapping[int, float]) -> int:
    """The multiple whose rounding explains latency against channel count best.

    Seconds of a convolution of c to c channels are fitted by a + b·r + d·r² with r = c rounded up to the multiple; the
    smallest multiple whose squared error is within 10 % of the least is taken.
    """
    import numpy as np

    counts = np.array(sorted(seconds))
    times = np.array([seconds[int(c)] for c in counts])
    errors = {}
    for multiple in MULTIPLES:
        rounded = -(-counts // multiple) * multiple
        basis = np.stack([np.ones(len(counts)), rounded, rounded**2], axis=1).astype(float)
        solution = np.linalg.lstsq(basis, times, rcond=None)[0]
        errors[multiple] = float(((basis @ solution - times) ** 2).sum())
    least = min(errors.values())
    return min(multiple for multiple, error in errors.items() if error <= 1.1 * least)


def _toml(target: Target, out: Path, measured: Mapping[str, Sequence[float]]) -> bytes:
    """The target's own profile with the measured figures in place of its own."""
    import tomli_w

    assert target.profile.path is not None
    data = tomllib.loads(target.profile.path.read_text(encoding="utf-8"))
    facts = _facts(target)
    versions = ", ".join(f"{k} {v}" for k, v in facts["versions"].items() if k != "device")
    source = f"measured by autocomp profile on {facts['date']}, {facts['device']}, {versions}"
    numbers, multiples = figures(target, measured)
    units = {"ops": ("Gop/s", 1e9), "bytes": ("GB/s", 1e9), "overhead": ("us", 1e-6)}
    written = {}
    for name, value in numbers.items():
        unit, factor = next(u for part, u in units.items() if part in name)
        written[name] = {"value": float(f"{value / factor:.4g}"), "unit": unit, "source": source}
    data["title"] = f"{facts['device']}, {target.profile.runtime}, measured {facts['date']}"
    data["device"] = facts["device"]
    data["latency_table"] = out.with_suffix(".latency.json").name
    data["channel_multiple"] = {p: {"value": m, "unit": "channels", "source": source} for p, m in multiples.items()}
    data["numbers"] = data.get("numbers", {}) | written
    head = {k: v for k, v in data.items() if not isinstance(v, dict)}
    return tomli_w.dumps(head | {k: v for k, v in data.items() if isinstance(v, dict)}).encode()


def _csv(measured: Mapping[str, Sequence[float]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["probe", "median_s", "fastest_s", "runs"])
    for key, times_s in measured.items():
        if not times_s:
            continue
        writer.writerow([key, f"{statistics.median(times_s):.4g}", f"{min(times_s):.4g}", len(times_s)])
    return text.getvalue().encode()

"""How far one coordinator carries: throughput of many workers, its own cost a trial, and fronts found in parallel.

    python benchmarks/cluster_scaling.py efficiency [--workers 4 16 64]   workers that wait 10 s, on a local Ray cluster
    python benchmarks/cluster_scaling.py coordinator [--trials 1000]      CPU milliseconds a trial, by sampler
    python benchmarks/cluster_scaling.py many [--trials 10000]            a long study: time, memory, reopening
    python benchmarks/cluster_scaling.py front [--seeds 10]               4 workers against one, equal evaluations
    python benchmarks/cluster_scaling.py simulate                         1,000 GPUs, from the costs measured before
    python benchmarks/cluster_scaling.py plot                             results/cluster_scaling.png

Each part adds to results/cluster_scaling.json.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, save

UNITS = 60
WAIT_S = 10.0
NAME = "cluster_scaling"


def add(part: str, data: Any) -> None:
    """Keep ``data`` beside what the other parts left."""
    path = RESULTS / f"{NAME}.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    parts = {k: v for k, v in known.items() if k not in ("machine", "python", "time")}
    save(NAME, {**parts, part: data})
    print(json.dumps(data, indent=1))


# workers that wait


def efficiency(workers: int, rounds: int) -> dict[str, float]:
    """Throughput of so many workers over the ideal, from the moment the last one has begun its first job."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(max(1, workers // 16)):
        nodes.add_node(num_cpus=min(16, workers))
    nodes.wait_for_nodes()
    try:
        with tempfile.TemporaryDirectory() as folder:
            driver = Path(__file__).with_name("cluster_driver.py")
            numbers = [workers * rounds, workers, WAIT_S, 60]
            command = [sys.executable, str(driver), folder, str(nodes.address), *map(str, numbers)]
            began = time.time()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            spans = [tuple(map(float, x.split())) for x in (Path(folder) / "spans.log").read_text().splitlines()]
    finally:
        nodes.shutdown()
    starts = sorted(a for a, _ in spans)
    full = starts[workers - 1]
    last = starts[-1]  # from here on there are fewer jobs than workers
    done = sum(full <= b <= last for _, b in spans)
    return {
        "workers": workers,
        "trials": len(spans),
        "start_up_s": full - began,
        "steady_s": last - full,
        "throughput_per_s": done / (last - full),
        "ideal_per_s": workers / WAIT_S,
        "efficiency": done / (last - full) * WAIT_S / workers,
        "whole_efficiency": len(spans) * WAIT_S / workers / (max(b for _, b in spans) - starts[0]),
    }


# the coordinator alone


def study(folder: Path, sampler: str, trials: int, *, seed: int = 0, units: int = UNITS) -> Any:
    """A coordinator on a fake space with fake prices, its storage open."""
    from autocomp.planner.plan import plan
    from autocomp.search.coordinator import Coordinator
    from autocomp.search.sampler import SamplerContext, make_sampler
    from autocomp.search.storage import open_storage
    from autocomp.testing.study_fakes import fake_prices, fake_space, within_budget

    space = fake_space(units)
    prices = fake_prices(space, seed=seed)
    budget = 500 * units
    starts = tuple(plan(prices, space, budget_bytes=budget, count=12))
    context = SamplerContext(space=space, prices=prices, plan=starts, budget_bytes=budget, seed=seed)
    storage = open_storage(folder / "study.journal")
    coordinator = Coordinator(
        space=space,
        sampler=make_sampler(sampler, context),
        storage=storage,
        study_name="cost",
        identity={"seed": seed},
        budget_trials=trials,
        constraints=within_budget,
    )
    return coordinator, storage


def driven(coordinator: Any, slots: int, *, every: Callable[[int, float], None] | None = None) -> None:
    """Ask until ``slots`` jobs run, tell one of them (the oldest), and so on to the end of the budget."""
    from autocomp.testing.study_fakes import fake_outcome

    running: list[Any] = []
    done, began = 0, time.process_time()
    while True:
        while len(running) < slots and (job := coordinator.ask()) is not None:
            running.append(job)
        if not running:
            return
        job = running.pop(0)
        coordinator.tell(job.number, fake_outcome(job.candidate, coordinator.space))
        done += 1
        if every is not None:
            every(done, time.process_time() - began)


def coordinator_cost(sampler: str, trials: int) -> dict[str, Any]:
    """CPU milliseconds a trial (ask, journal, tell, mirror), over all and over the last tenth."""
    marks: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as name:
        coordinator, storage = study(Path(name), sampler, trials)
        wall = time.perf_counter()
        driven(coordinator, 4, every=marks.__setitem__)
        wall = time.perf_counter() - wall
        storage.close()
    told = len(marks)
    tenth = max(1, told // 10)
    return {
        "sampler": sampler,
        "trials": told,
        "cpu_ms": 1e3 * marks[told] / told,
        "last_tenth_cpu_ms": 1e3 * (marks[told] - marks[told - tenth]) / tenth,
        "wall_ms": 1e3 * wall / told,
    }


def many(trials: int) -> dict[str, Any]:
    """A long study of random candidates with 60 units: its time, memory and reopening."""
    marks: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as name:
        coordinator, storage = study(Path(name), "random", trials)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        driven(coordinator, 64, every=marks.__setitem__)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        storage.close()
        journal = (Path(name) / "study.journal").stat().st_size
        began = time.process_time()
        again, storage = study(Path(name), "random", trials)
        reopened = time.process_time() - began
        assert again.evaluations == trials
        storage.close()
    thousand = {n: 1e3 * (marks[n] - marks.get(n - 1000, 0.0)) / 1000 for n in range(1000, trials + 1, 1000)}
    return {
        "trials": len(marks),
        "cpu_s": marks[trials],
        "cpu_ms_by_thousand": thousand,
        "memory_bytes_per_trial": (after - before) * 1024 / trials,
        "journal_bytes_per_trial": journal / trials,
        "reopen_cpu_s": reopened,
    }


# the same front


def front_of(sampler: str, slots: int, seed: int, trials: int) -> float:
    """Hypervolume of (log10 loss, bytes) that a study finds."""
    from autocomp.core.outcome import Completed
    from autocomp.search.front import hypervolume

    with tempfile.TemporaryDirectory() as name:
        coordinator, storage = study(Path(name), sampler, trials, seed=seed, units=12)
        driven(coordinator, slots)
        storage.close()
    outcomes = [r.outcome for r in coordinator.records.values() if isinstance(r.outcome, Completed)]
    points = np.array([[np.log10(max(o.kl, 1e-9)), o.file_bytes / 1e3] for o in outcomes])
    return float(hypervolume(points, [2.0, 40.0]))


def fronts(seeds: int, trials: int) -> list[dict[str, Any]]:
    rows = []
    for sampler in ("hybrid", "tpe", "nsga2", "random"):
        one = [front_of(sampler, 1, seed, trials) for seed in range(seeds)]
        four = [front_of(sampler, 4, seed, trials) for seed in range(seeds)]
        differences = [b - a for a, b in zip(one, four, strict=True)]
        rows.append(
            {
                "sampler": sampler,
                "trials": trials,
                "one": one,
                "four": four,
                "mean_one": statistics.mean(one),
                "mean_four": statistics.mean(four),
                "spread_of_one": statistics.stdev(one),
                "mean_difference": statistics.mean(differences),
                "standard_error": statistics.stdev(differences) / seeds**0.5,
            }
        )
    return rows


# what one coordinator carries


def simulated(workers: int, evaluation_s: float, coordinator_s: float, trials: int, seed: int = 0) -> float:
    """Share of the workers' time that they work, where one coordinator serves them one after the other.

    Evaluations take log-normal times of the given mean (deviation a third of it); ask and tell together take
    ``coordinator_s``.
    """
    rng = random.Random(seed)
    sigma = 0.32
    free = 0.0
    busy = 0.0
    ends: list[float] = []
    for number in range(trials):
        ready = heapq.heappop(ends) if number >= workers else 0.0
        free = max(free, ready) + coordinator_s
        length = evaluation_s * rng.lognormvariate(-sigma * sigma / 2, sigma)
        busy += length
        heapq.heappush(ends, free + length)
    return busy / (workers * max(ends))


def simulate() -> dict[str, Any]:
    data = json.loads((RESULTS / f"{NAME}.json").read_text())
    costs = {row["sampler"]: row["last_tenth_cpu_ms"] / 1e3 for row in data["coordinator"]}
    rows = []
    for sampler, cost in costs.items():
        for evaluation_s in (10.0, 60.0, 600.0):
            share = simulated(1000, evaluation_s, cost, 20_000)
            rows.append({"sampler": sampler, "evaluation_s": evaluation_s, "workers": 1000, "busy": share})
    limits = {
        sampler: {f"{s:g} s": int(0.9 * s / cost) for s in (10.0, 60.0, 600.0)} for sampler, cost in costs.items()
    }
    return {"coordinator_s": costs, "simulated": rows, "workers_at_90_percent": limits}


def plot() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    data = json.loads((RESULTS / f"{NAME}.json").read_text())
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    rows = data["efficiency"]
    workers = [r["workers"] for r in rows]
    left.plot(workers, [r["ideal_per_s"] for r in rows], "--", color="0.6", label="ideal")
    left.plot(workers, [r["throughput_per_s"] for r in rows], "o-", label="measured")
    for r in rows:
        left.annotate(
            f"{r['efficiency']:.0%}", (r["workers"], r["throughput_per_s"]), xytext=(6, -12), textcoords="offset points"
        )
    left.set(
        xlabel="workers",
        ylabel="evaluations per second",
        title="Evaluations that wait 10 s",
    )
    left.legend()
    cost = data["many"]["cpu_ms_by_thousand"]
    right.plot([int(n) for n in cost], list(cost.values()), "o-")
    right.set(
        xlabel="trials in the study",
        ylabel="coordinator, CPU ms a trial",
        title="60 units, random candidates",
        ylim=(0, None),
    )
    figure.savefig(RESULTS / f"{NAME}.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["efficiency", "coordinator", "many", "front", "simulate", "plot"])
    parser.add_argument("--workers", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--trials", type=int)
    parser.add_argument("--seeds", type=int, default=10)
    given = parser.parse_args()
    match given.part:
        case "efficiency":
            add("efficiency", [efficiency(n, given.rounds) for n in given.workers])
        case "coordinator":
            samplers = ("random", "hybrid", "nsga2", "tpe")
            add("coordinator", [coordinator_cost(s, given.trials or 1000) for s in samplers])
        case "many":
            add("many", many(given.trials or 10_000))
        case "front":
            add("front", fronts(given.seeds, given.trials or 120))
        case "simulate":
            add("simulate", simulate())
        case _:
            plot()


if __name__ == "__main__":
    main()

"""What breaks on a cluster, broken on purpose at random moments: is anything lost, counted twice, left behind?

    python benchmarks/cluster_faults.py [--runs 20] [FAULT ...]      write results/cluster_faults.json

Each run: a search of 16 fake evaluations (0.2 s each) by three workers on a cluster of three Ray nodes of this machine;
when a random number of them is done the fault is injected. A search that ends by that is started again by the same
command. Then every trial has to be there, finished once, those that were finished before unchanged, and no worker
process left.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from common import RESULTS, save

TRIALS, WORKERS, SLEEP_S, SILENCE_S = 16, 3, 0.2, 4.0
DEADLINE_S = 300.0
SET_STATE, FAIL = 6, 3  # Optuna's journal operation and state
DRIVER = Path(__file__).with_name("cluster_driver.py")


class Nodes:
    """A head without workers and two nodes with two CPUs each, replaced where a fault took one."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._make = Cluster
        self.start()

    def start(self) -> None:
        self.cluster = self._make(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.workers = [self.cluster.add_node(num_cpus=2) for _ in range(2)]
        self.cluster.wait_for_nodes()

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def lose(self, rng: random.Random) -> None:
        """Kill a node that holds workers, at once."""
        self.cluster.remove_node(self.workers.pop(rng.randrange(len(self.workers))), allow_graceful=False)

    def lose_head_store(self) -> None:
        """Kill the process that holds the driver's object store."""
        for process in self.cluster.head_node.all_processes["raylet"]:
            process.process.kill()
            process.process.wait()  # as a zombie it would look alive to its workers

    def whole(self) -> None:
        while len(self.workers) < 2:
            self.workers.append(self.cluster.add_node(num_cpus=2))
        self.cluster.wait_for_nodes()

    def anew(self) -> None:
        self.cluster.shutdown()
        self.start()


class Run:
    """One search in a folder, and what is known of it."""

    def __init__(self, folder: Path, nodes: Nodes) -> None:
        self.folder, self.nodes = folder, nodes
        self.begin()

    def begin(self) -> None:
        command = [sys.executable, str(DRIVER), str(self.folder), self.nodes.address]
        command += [str(x) for x in (TRIALS, WORKERS, SLEEP_S, SILENCE_S)]
        self.driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def journal(self) -> list[dict[str, Any]]:
        path = self.folder / "study.journal"
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def ended(self) -> Counter[int]:
        """Trial → how often it was finished."""
        return Counter(x["trial_id"] for x in self.journal() if x["op_code"] == SET_STATE and x["state"] in (1, 3))

    def outcomes(self) -> dict[int, Any]:
        """Trial → its last written outcome, of finished ones."""
        done = self.ended()
        found = {}
        for x in self.journal():
            if x["op_code"] == 8 and "outcome" in x.get("user_attr", {}) and x["trial_id"] in done:
                found[x["trial_id"]] = x["user_attr"]["outcome"]
        return found

    def wait_for(self, trials: int) -> None:
        until = time.monotonic() + DEADLINE_S
        while len(self.ended()) < trials and self.driver.poll() is None and time.monotonic() < until:
            actors()
            time.sleep(0.02)

    def actors(self) -> list[psutil.Process]:
        """Worker processes of this cluster; the timer is not one of them."""
        timer = (self.folder / "timer.pid").read_text() if (self.folder / "timer.pid").exists() else ""
        return [p for p in actors() if str(p.pid) != timer]

    def timer(self) -> psutil.Process:
        return psutil.Process(int((self.folder / "timer.pid").read_text()))

    def end(self) -> tuple[int, str]:
        """Wait for the driver: its exit code and what it said."""
        try:
            _, said = self.driver.communicate(timeout=DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.driver.kill()
            _, said = self.driver.communicate()
            return -1, f"hangs: {said}"
        return self.driver.returncode, said.strip()


SEEN: set[psutil.Process] = set()
"""Processes that were below our nodes at some time: whoever outlives its node hangs from process 1."""


def actors() -> list[psutil.Process]:
    """Processes of our nodes that are actors' and alive."""
    SEEN.update(psutil.Process().children(recursive=True))
    found = []
    for process in SEEN:
        with contextlib.suppress(psutil.Error):
            if process.is_running() and " ".join(process.cmdline()).startswith("ray::Actor"):
                found.append(process)
    return found


def kill_driver(run: Run, rng: random.Random) -> None:
    run.driver.kill()


def kill_worker(run: Run, rng: random.Random) -> None:
    rng.choice(run.actors()).kill()


def kill_node(run: Run, rng: random.Random) -> None:
    run.nodes.lose(rng)


def kill_timer(run: Run, rng: random.Random) -> None:
    run.timer().kill()


def freeze_worker(run: Run, rng: random.Random) -> None:
    rng.choice(run.actors()).send_signal(signal.SIGSTOP)


def fill_disk(run: Run, rng: random.Random) -> None:
    with contextlib.suppress(OSError), (run.folder / "filler").open("wb") as filler:
        while True:
            filler.write(b"\0" * 4096)
            filler.flush()


def tear_journal(run: Run, rng: random.Random) -> None:
    """A record cut off in the middle, as a power cut leaves it."""
    run.driver.kill()
    run.driver.wait()
    path = run.folder / "study.journal"
    line = path.read_bytes().split(b"\n")[-2]
    with path.open("ab") as journal:
        journal.write(line[: rng.randrange(1, len(line))])


def lose_store(run: Run, rng: random.Random) -> None:
    run.nodes.lose_head_store()


FAULTS: dict[str, tuple[str, Callable[[Run, random.Random], None]]] = {
    "driver": ("kill -9 of the driver", kill_driver),
    "worker": ("kill -9 of a worker", kill_worker),
    "node": ("kill -9 of a node", kill_node),
    "timer": ("kill -9 of the timing actor", kill_timer),
    "frozen": ("a worker stopped (SIGSTOP)", freeze_worker),
    "disk": ("the disk is full", fill_disk),
    "journal": ("a torn record at the journal's end", tear_journal),
    "store": ("the driver's object store is lost (its raylet killed)", lose_store),
}


@contextlib.contextmanager
def small_disk(fault: str) -> Iterator[Path]:
    """A folder; for the full disk a file system of its own, of one megabyte."""
    with tempfile.TemporaryDirectory(prefix="autocomp-fault-") as name:
        if fault != "disk":
            yield Path(name)
            return
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", name], check=True)
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", "-l", name], check=True)


def one(fault: str, nodes: Nodes, seed: int) -> dict[str, Any]:
    """One run; what was found."""
    rng = random.Random(f"{fault}-{seed}")
    with small_disk(fault) as folder:
        run = Run(folder, nodes)
        run.wait_for(rng.randrange(1, TRIALS - 4))
        time.sleep(rng.uniform(0, 0.3))
        before = run.outcomes()
        began = time.monotonic()
        FAULTS[fault][1](run, rng)
        code, said = run.end()
        restarted = code != 0
        if restarted:
            (folder / "filler").unlink(missing_ok=True)
            if fault == "store":
                nodes.anew()
            run.begin()
            code, last = run.end()
        seconds = time.monotonic() - began
        ended, after = run.ended(), run.outcomes()
        left = wait_until_gone()
        if fault == "store" and not restarted:
            nodes.anew()
        nodes.whole()
        return {
            "fault": fault,
            "seed": seed,
            "done_before": len(before),
            "restarted": restarted,
            "said": said if restarted else "",
            "exit_code": code,
            "lost": sum(after.get(n) != outcome for n, outcome in before.items()),
            "finished": len(ended),
            "failed": sum(x["op_code"] == SET_STATE and x["state"] == FAIL for x in run.journal()),
            "twice": sum(n > 1 for n in ended.values()),
            "left_processes": left,
            "evaluations_begun": len((folder / "starts.log").read_text().splitlines()),
            "seconds": round(seconds, 1),
            "error": last if restarted and code else "",
        }


def wait_until_gone() -> int:
    """Worker processes that are still there half a minute after the search."""
    until = time.monotonic() + 30
    while actors() and time.monotonic() < until:
        time.sleep(0.2)
    for process in actors():
        print("left:", process, process.parents(), file=sys.stderr)
    return len(actors())


def holds(row: dict[str, Any]) -> bool:
    good = row["exit_code"] == 0 and row["finished"] == TRIALS
    return good and not row["failed"] and not row["lost"] and not row["twice"] and not row["left_processes"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faults", nargs="*", default=[], metavar="FAULT", help=", ".join(FAULTS))
    parser.add_argument("--runs", type=int, default=20)
    given = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    nodes = Nodes()
    file = RESULTS / "cluster_faults.json"
    rows: list[dict[str, Any]] = json.loads(file.read_text())["rows"] if file.is_file() else []
    for fault in given.faults or FAULTS:
        rows = [r for r in rows if r["fault"] != fault]
        for seed in range(given.runs):
            rows.append(one(fault, nodes, seed))
            print(json.dumps(rows[-1]), flush=True)
            save("cluster_faults", {"rows": rows})
        mine = [r for r in rows if r["fault"] == fault]
        print(f"{FAULTS[fault][0]}: {sum(map(holds, mine))} of {len(mine)} hold", flush=True)
    nodes.cluster.shutdown()


if __name__ == "__main__":
    main()

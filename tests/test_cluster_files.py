"""docs/clusters.md and examples/cluster: files parse, commands and options in them exist, versions are those we pin."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from autocomp import config

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples" / "cluster"
FILES = [ROOT / "docs" / "clusters.md", *sorted(EXAMPLES.iterdir())]


def text_of(path: Path) -> str:
    """Text with continued lines joined."""
    return path.read_text(encoding="utf-8").replace("\\\n", " ")


def calls(path: Path, program: str, commands: Iterable[str] = ("search", "watch")) -> Iterator[list[str]]:
    """Arguments of each call of ``program`` in a file: its code lines in a document, all lines elsewhere."""
    text = text_of(path)
    if path.suffix == ".md":
        text = "\n".join(re.findall(r"^```bash\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL))
    one = "|".join(commands)
    for call in re.findall(rf"(?:^|[\s/'])({program} (?:{one})\b[^#\n']*(?:'[^'\n]*'[^#\n']*)*)", text):
        words = shlex.split(call)[1:]
        yield words[: words.index("--")] if "--" in words else words


def yaml_of(name: str) -> Any:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed (it comes with the extra ray)")
    return yaml.safe_load((EXAMPLES / name).read_text(encoding="utf-8"))


def pinned(name: str) -> str:
    found = re.search(rf"^{name}==(.*)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert found
    return found[1]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_autocomp_is_called_as_it_can_be(path: Path) -> None:
    import typer.main

    from autocomp.cli import app

    commands = getattr(typer.main.get_command(app), "commands")  # noqa: B009  declared on the group type only
    found = list(calls(path, "autocomp"))
    assert found
    for call in found:
        known = {name for parameter in commands[call[0]].params for name in parameter.opts}
        assert {word for word in call[1:] if word.startswith("-")} <= known
        flags = {a[2:]: b for a, b in itertools.pairwise(call) if a.startswith("--")}
        config.resolve(flags, None)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_ray_is_called_as_it_can_be(path: Path) -> None:
    scripts = pytest.importorskip("ray.scripts.scripts", reason="Ray is not installed (extra: ray)")
    for call in calls(path, "ray", scripts.cli.commands):
        command = scripts.cli.commands[call[0]]
        known = {name for parameter in command.params for name in parameter.opts}
        if call[0] == "symmetric-run":
            known |= {name for parameter in scripts.cli.commands["start"].params for name in parameter.opts}
        assert {word.split("=")[0] for word in call if word.startswith("--")} <= known


def test_label_of_the_measured_node_is_the_one_that_is_asked_for() -> None:
    labels = [json.loads(x) for x in re.findall(r"--resources='(\{.*?\})'", text_of(FILES[0]))]
    assert labels == [{"target_orin": 1}]
    asked = [dict(itertools.pairwise(c)).get("--resources") for c in calls(FILES[0], "autocomp")]
    assert [a for a in asked if a is not None] == ["gpu=1,target_orin=1"]


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", text_of(FILES[0])):
        assert target.startswith("https://") or (ROOT / "docs" / target).exists(), target


def test_cluster_file_is_what_ray_takes() -> None:
    util = pytest.importorskip("ray.autoscaler._private.util", reason="Ray is not installed (extra: ray)")
    util.validate_config(util.prepare_config(yaml_of("ray-cluster.yaml")))


def test_slurm_script_is_bash() -> None:
    subprocess.run(["bash", "-n", str(EXAMPLES / "slurm.sh")], check=True)


def test_manifest_fits_together() -> None:
    job = yaml_of("rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == pinned("ray")
    assert f"rayproject/ray:{pinned('ray')}-py311" in text_of(FILES[0])
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    out = Path(shlex.split(job["spec"]["entrypoint"])[-1])
    for group in groups:
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        (container,) = pod["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert set(mounts) <= volumes
        assert any(out.is_relative_to(path) for path in mounts.values()), "the run folder is shared by all pods"
    labelled = [g for g in groups if "resources" in g["rayStartParams"]]
    assert [json.loads(json.loads(g["rayStartParams"]["resources"])) for g in labelled] == [{"target_orin": 1}]

"""The README is true: its Python runs, its options exist, its links lead somewhere, CI runs its lines."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from autocomp import errors

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)


def autocomp_calls() -> list[list[str]]:
    """Arguments of every ``autocomp`` call in the shell blocks."""
    calls = []
    for block in blocks("bash"):
        for part in re.split(r"\n|&&", block):
            words = shlex.split(part.split(" > ")[0], comments=True)
            if words and Path(words[0]).name == "autocomp":
                calls.append(words[1:])
    return calls


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {"__name__": "readme"}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), scope)
    assert (tmp_path / "small.autocomp").stat().st_size > 0


@pytest.mark.parametrize("call", autocomp_calls(), ids=" ".join)
def test_options_exist(call: list[str]) -> None:
    import typer.main

    from autocomp.cli import app

    commands = getattr(typer.main.get_command(app), "commands")  # noqa: B009  declared on the group type only
    assert call[0] in commands, f"no command {call[0]}"
    known = {name for parameter in commands[call[0]].params for name in parameter.opts}
    given = {word.split("=")[0] for word in call[1:] if word.startswith("-")}
    assert given <= known


def test_shell_values_are_understood() -> None:
    from autocomp import config

    known = {"budget", "max_latency", "max_drop", "batch_size", "image_size", "preset", "sampler", "metric"}
    for call in autocomp_calls():
        pairs = itertools.pairwise(call)
        flags = {a[2:].replace("-", "_"): b for a, b in pairs if a.startswith("--")}
        config.resolve({k: v for k, v in flags.items() if k in known}, None)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert not target.startswith("http"), "the README needs no network"
        assert (ROOT / target).exists(), target


def test_exit_codes_are_those_of_the_errors() -> None:
    table = {int(code) for code in re.findall(r"^\| (\d+) \|", TEXT, flags=re.MULTILINE)}
    assert {errors.ConfigError.exit_code, errors.InfeasibleError.exit_code} <= table
    assert table == {0, 1, 2, 3, 70, 130}


def test_ci_runs_the_two_lines() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    program = re.search(r"awk -v mark=\"<!-- ci: \$1 -->\" '(.*?)'", script, flags=re.DOTALL)
    assert program
    for name, start in (("run", "autocomp search --budget 4MB"), ("test", "pytest")):
        mark = f"mark=<!-- ci: {name} -->"
        done = subprocess.run(
            ["awk", "-v", mark, program[1], str(ROOT / "README.md")], capture_output=True, text=True, check=True
        )
        line = done.stdout.strip()
        assert "\n" not in line
        assert line.startswith("python3 -m venv .venv && .venv/bin/pip install -c constraints.txt ")
        assert line.endswith(start)


def test_every_install_is_constrained() -> None:
    for line in re.findall(r"pip install[^\n`]*", TEXT):
        assert "-c constraints.txt" in line


def test_constraints_are_exact() -> None:
    lines = [x for x in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if not x.startswith("#")]
    names = [x.split("==")[0] for x in lines]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][a-z0-9.]*", x) for x in lines)
    assert names == sorted(set(names))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    needed = re.findall(r'^    "([A-Za-z0-9-]+)>=', project, flags=re.MULTILINE)
    assert len(needed) > 15
    assert set(needed) <= set(names)

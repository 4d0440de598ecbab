"""What the command line hands on, prints and returns. The stages themselves are tested where they live."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autocomp import cli, config, terminal
from autocomp.core.progress import Progress
from autocomp.core.result import RunSummary
from autocomp.core.row import Row
from autocomp.core.settings import Settings
from autocomp.errors import InfeasibleError, StorageError
from autocomp.stages.verifying import Check


def summary(best: bool = True) -> RunSummary:
    row = Row(name="float32", file_bytes=44_000_000, score_search=0.99, kl_search=0.0)
    answer = Row(
        name="best",
        trial=3,
        feasible=True,
        file="/runs/x/model.autocomp",
        file_bytes=3_900_000,
        score_search=0.98,
        score_test=0.97,
        score_test_ci95=(0.95, float("inf")),
        kl_search=0.01,
    )
    return RunSummary(
        run="/runs/x",
        model="resnet18",
        data="digits",
        target="cpu-onnxruntime",
        budget_bytes=4_000_000,
        constraints={},
        metric={"name": "accuracy", "direction": "maximize", "unit": "fraction"},
        float32=row,
        best=answer if best else None,
        baselines={"float16": row},
        pareto=(answer,),
        nearest={} if best else {"file_bytes": 5_000_000.0},
    )


class Recorder:
    """Stands where ``pipeline.search`` is called, so that what is handed on can be looked at."""

    def __init__(self, result: RunSummary | BaseException) -> None:
        self.result = result
        self.settings = Settings()
        self.options: dict[str, Any] = {}

    def __call__(self, settings: Settings, progress: Progress, **options: Any) -> RunSummary:
        self.settings, self.options = settings, options
        progress.note("half way")
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Recorder:
    monkeypatch.chdir(tmp_path)
    recorder = Recorder(summary())
    monkeypatch.setattr("autocomp.pipeline.search", recorder)
    return recorder


def test_every_option_reaches_the_settings(search: Recorder, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").touch()
    arguments = "search pkg.nets:make --weights w.safetensors --data pkg.data:make --image-size 64 --normalize none"
    arguments += " --metric top5 --budget 4MiB --max-latency 2ms --max-engine-size 8MB --max-drop 1%"
    arguments += " --target cpu-onnxruntime --batch-size 1,16 --space quick --preset quick --trials 9 --timeout 1min"
    arguments += " --sampler tpe --storage sqlite:///s.db --jobs 2 --finish none"
    arguments += " --cluster auto --resources gpu=1,target_orin=0.5 --executor ray_tune"
    arguments += " --seed 4 --out here --cache /shared --fresh --json"
    assert cli.run(arguments.split()) == 0
    assert search.options == {"fresh": True}
    assert search.settings == Settings(
        model="pkg.nets:make",
        weights=Path("w.safetensors"),
        data="pkg.data:make",
        image_size=64,
        normalize="none",
        metric="top5",
        budget_bytes=4_194_304,
        budget_text="4MiB",
        max_latency_s=0.002,
        max_engine_bytes=8_000_000,
        max_drop=0.01,
        target="cpu-onnxruntime",
        batch_size=(1, 16),
        space="quick",
        preset="quick",
        trials=9,
        timeout_s=60.0,
        sampler="tpe",
        storage="sqlite:///s.db",
        jobs=2,
        cluster="auto",
        resources={"GPU": 1.0, "target_orin": 0.5},
        executor="ray_tune",
        finish="none",
        seed=4,
        out=Path("here"),
        cache=Path("/shared"),
    )


def test_search_has_a_flag_for_every_option() -> None:
    assert set(config.OPTIONS) <= set(inspect.signature(cli.search).parameters)


def test_json_is_one_object_on_stdout_and_progress_on_stderr(
    search: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["search", "--budget", "4MB", "--json"]) == 0
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert tuple(data) == RunSummary.BRIEF
    assert data["best"]["file_bytes"] == 3_900_000
    assert data["best"]["score_test_ci95"] == [0.95, None]
    assert "half way" in err


def test_people_get_a_table(search: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["search", "--budget", "4MB", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert "float32" in out
    assert "best" in out
    assert "half way" in err


def test_a_config_file_is_read_and_flags_win(search: Recorder, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('budget = "3MB"\nseed = 7\n')
    assert cli.run(["search", "--config", "c.toml", "--budget", "4MB"]) == 0
    assert (search.settings.budget_bytes, search.settings.seed) == (4_000_000, 7)


def test_nothing_feasible_is_exit_3_with_the_nearest_miss(search: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    search.result = summary(best=False)
    assert cli.run(["search", "--budget", "4MB", "--json"]) == 3
    out, err = capsys.readouterr()
    assert json.loads(out)["best"] is None
    assert "Nothing meets the constraints" in err
    search.result = InfeasibleError("the smallest reachable size is 300 kB")
    assert cli.run(["search", "--budget", "1kB"]) == 3
    assert "error: the smallest reachable size is 300 kB" in capsys.readouterr().err


def test_interruption_says_how_to_go_on(search: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    search.result = KeyboardInterrupt()
    assert cli.run(["search", "--budget", "4MB", "--out", "here"]) == 130
    err = capsys.readouterr().err
    assert "saved in here; the same command goes on" in err
    assert "Traceback" not in err


def test_expected_errors_are_one_line_and_with_v_logged(
    search: Recorder, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    search.result = StorageError("no space left\non /data")
    (tmp_path / "here").mkdir()
    assert cli.run(["search", "--out", "here"]) == 2
    assert not (tmp_path / "here" / "log.txt").exists()
    assert cli.run(["search", "--out", "here", "-v"]) == 2
    err = capsys.readouterr().err
    assert err.count("error: no space left on /data\n") == 2
    assert "Traceback" not in err
    assert "StorageError: no space left" in (tmp_path / "here" / "log.txt").read_text()


def test_a_bug_is_one_line_and_its_traceback_is_in_the_log(
    search: Recorder, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    search.result = ZeroDivisionError("division by zero")
    (tmp_path / "here").mkdir()
    assert cli.run(["search", "--out", "here"]) == 70
    err = capsys.readouterr().err
    assert "unexpected ZeroDivisionError: division by zero; the traceback is in here/log.txt" in err
    assert "Traceback" not in err
    assert "Traceback" in (tmp_path / "here" / "log.txt").read_text()


def test_without_a_run_folder_the_log_goes_to_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    assert terminal.write_log(ValueError("x"), tmp_path / "none") == tmp_path / "autocomp-log.txt"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "--budget", "0"], "--budget = '0': a size is at least 1 byte"),
        (["search", "--budget", "-4MB"], "a size is at least 1 byte"),
        (["search", "--budget", "4 apples"], "--budget = '4 apples': not a size"),
        (["search", "--budgt", "4MB"], "--budget"),
        (["serch"], "search"),
        (["search", "--budget"], "--budget"),
        (["search", "--cluster", "here"], "HOST:PORT"),
        (["search", "--resources", "gpu=1"], "--cluster auto"),
        (["search", "--executor", "ray"], "ray_actors"),
        (["search", "--finish", "qat"], "--finish ptq"),
        (["search", "--sampler", "gp"], "tpe"),
        (["search", "--target", "cpu"], "cpu-onnxruntime"),
        (["search", "resnet19"], "resnet18"),
        (["search", "--config", "no.toml"], "there is no such file"),
        (["export"], "RUN"),
    ],
)
def test_bad_input_is_exit_2_in_one_line(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_verify_exits_1_where_a_claim_does_not_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = [
        Check(name="size", claimed="5", measured="5", ok=True),
        Check(name="bits", claimed="a", measured="b", ok=False),
    ]
    monkeypatch.setattr("autocomp.pipeline.verify", lambda path, progress: checks)
    assert cli.run(["verify", str(tmp_path), "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["ok"] is False
    assert data["checks"][1] == {"name": "bits", "claimed": "a", "measured": "b", "ok": False}
    monkeypatch.setattr("autocomp.pipeline.verify", lambda path, progress: checks[:1])
    assert cli.run(["verify", str(tmp_path)]) == 0
    assert "size" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["report", "export", "verify"])
def test_a_folder_that_is_no_run_is_exit_2(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([command, str(tmp_path / "none")]) == 2
    assert "no run at" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "expected"),
    [("targets", "cpu-onnxruntime"), ("spaces", "joint"), ("models", "resnet20"), ("doctor", "onnxruntime")],
)
def test_lists(command: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([command]) == 0
    assert expected in capsys.readouterr().out
    assert cli.run([command, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)[command]
    assert any(expected in row.values() for row in rows)


def test_version_and_help_import_nothing_heavy() -> None:
    code = (
        "import sys; from autocomp import cli; code = cli.run(sys.argv[1:]);"
        "heavy = {'torch', 'optuna', 'onnx', 'onnxruntime', 'pandas', 'sklearn'} & set(sys.modules);"
        "sys.exit(99 if heavy else code)"
    )
    for arguments, text in ((["--version"], "autocomp 0."), (["--help"], "search"), (["search", "--help"], "--budget")):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert text in done.stdout

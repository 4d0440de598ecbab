"""Flags and files become settings; what cannot be is said in one line."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocomp import config
from autocomp.core.settings import Settings
from autocomp.core.settings_file import to_options, write_config
from autocomp.errors import AutocompError, ConfigError, UnknownNameError, UnsupportedError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4MB", 4_000_000),
        ("4MiB", 4_194_304),
        ("4 mb", 4_000_000),
        ("512kB", 512_000),
        ("1.5KiB", 1_536),
        ("2GB", 2_000_000_000),
        ("4000000", 4_000_000),
        ("4_000_000", 4_000_000),
        ("4000000B", 4_000_000),
        (4_000_000, 4_000_000),
        ("0.0000015MB", 1),
    ],
)
def test_sizes(text: Any, size: int) -> None:
    assert config.parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["0", "-1MB", "4 apples", "4M", "nan", "inf", "", "MB", "1e400", "4MB 5MB", "0.5", True, None, [4]]
)
def test_bad_sizes_are_one_clear_line(text: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse_size(text, "--budget")
    assert "--budget" in str(caught.value)
    assert "4MB" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2ms", 0.002), ("1.5s", 1.5), ("300us", 0.0003), ("10min", 600.0), ("1h", 3600.0), ("7", 7.0), (0.25, 0.25)],
)
def test_durations(text: Any, seconds: float) -> None:
    assert config.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["0s", "-2ms", "2 parsecs", "nan", "soon", ""])
def test_bad_durations(text: str) -> None:
    with pytest.raises(ConfigError, match="2ms"):
        config.parse_duration(text)


@pytest.mark.parametrize(("text", "drop"), [("1%", 0.01), ("0.01", 0.01), ("0", 0.0), ("0.5 %", 0.005), (0.02, 0.02)])
def test_drops(text: Any, drop: float) -> None:
    assert config.parse_drop(text) == drop


@pytest.mark.parametrize("text", ["-1%", "a point", "nan", "1MB"])
def test_bad_drops(text: str) -> None:
    with pytest.raises(ConfigError, match="1%"):
        config.parse_drop(text)


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_a_config_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert config.parse_size(text) >= 1


def test_a_percentage_waits_for_the_model() -> None:
    settings, _ = config.resolve({"budget": "12 %"})
    assert settings.budget_bytes is None
    assert settings.budget_text == "12%"
    with pytest.raises(ConfigError, match="above 0"):
        config.resolve({"budget": "0%"})


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('budget = "3MB"\nmax-drop = "1%"\nseed = 5\nbatch_size = [1, 16]\n')
    settings, origin = config.resolve({"budget": "4MB", "seed": None}, file)
    assert settings.budget_bytes == 4_000_000
    assert (settings.max_drop, settings.seed, settings.batch_size) == (0.01, 5, (1, 16))
    assert origin["budget"] == "flag"
    assert origin["seed"] == origin["max_drop"] == str(file)
    assert origin["preset"] == "default"
    assert set(origin) == set(config.OPTIONS)


def test_a_value_of_the_file_that_a_flag_replaces_is_not_judged(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('budget = "4 apples"\n')
    assert config.resolve({"budget": "4MB"}, file)[0].budget_bytes == 4_000_000
    with pytest.raises(ConfigError, match=r"run\.toml: budget = '4 apples'"):
        config.resolve({}, file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("budgt = 3", "did you mean budget"),
        ("budget = ", "not valid TOML"),
        ('trials = "many"', "trials = 'many': allowed are whole numbers from 1"),
        ("model = 3", "model = 3: text is expected"),
        ("[search]\nbudget = 3", "unknown option"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        config.resolve({}, file)
    assert "run.toml" in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        config.resolve({}, tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("flags", "nearest"),
    [
        ({"target": "cpu-onnxruntim"}, "cpu-onnxruntime"),
        ({"space": "jiont"}, "joint"),
        ({"sampler": "nsga3"}, "nsga2"),
        ({"metric": "acuracy"}, "accuracy"),
        ({"preset": "quik"}, "quick"),
        ({"finish": "pt"}, "ptq"),
        ({"data": "digit"}, "digits"),
        ({"model": "resnet19"}, "resnet18"),
        ({"bugdet": "4MB"}, "budget"),
    ],
)
def test_unknown_names_offer_the_nearest(flags: dict[str, Any], nearest: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        config.resolve(flags)
    assert nearest in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        ({"finish": "qat"}, UnsupportedError, "later version; use --finish ptq"),
        ({"cluster": "here"}, ConfigError, "HOST:PORT"),
        ({"cluster": "auto", "resources": "gpu"}, ConfigError, "NAME=AMOUNT"),
        ({"cluster": "auto", "resources": "gpu=0"}, ConfigError, "above 0"),
        ({"resources": "gpu=1"}, ConfigError, "--cluster auto"),
        ({"cluster": "auto", "executor": "inline"}, ConfigError, "leave out --cluster"),
        ({"weights": "no/such.safetensors"}, ConfigError, "there is no such file"),
        ({"data": "imagefolder:no/such"}, ConfigError, "there is no folder"),
        ({"data": "npz:no/such.npz"}, ConfigError, "there is no file"),
        ({"target": "no/such.toml"}, ConfigError, "there is no such file"),
        ({"max_drop": "1"}, ConfigError, "write 1% or 0.01"),
        ({"batch_size": "1,0"}, ConfigError, "whole numbers from 1"),
        ({"batch_size": ()}, ConfigError, "at least one"),
        ({"jobs": "0"}, ConfigError, "whole numbers from 1"),
        ({"seed": "1.5"}, ConfigError, "whole numbers from 0"),
        ({"image_size": "2"}, ConfigError, "whole numbers from 8"),
        ({"normalize": "imagnet"}, ConfigError, "imagenet, cifar10, none"),
        ({"normalize": "0,0,0/1,0,1"}, ConfigError, "above 0"),
        ({"storage": "study.db"}, ConfigError, "sqlite:///"),
        ({"storage": "postgresql://me:***@host/db"}, ConfigError, "PGPASSWORD"),
        ({"storage": "postgresql://host/db?password=***"}, ConfigError, "PGPASSWORD"),
    ],
)
def test_bad_values_say_what_is_allowed(flags: dict[str, Any], error: type[AutocompError], message: str) -> None:
    with pytest.raises(error) as caught:
        config.resolve(flags)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_the_default_folder_names_the_run() -> None:
    assert str(config.resolve({"budget": "4MB"})[0].out) == "runs/resnet18-4MB-cpu-onnxruntime-s0"
    assert str(config.resolve({"budget": "12%", "seed": 3})[0].out) == "runs/resnet18-12pct-cpu-onnxruntime-s3"
    odd = config.default_out(Settings(model="some dir/net.py:make", budget_text="4 MB", target="my/board.toml"))
    assert str(odd) == "runs/net-make-4-MB-board-s0"


def _full_settings(tmp_path: Path) -> Settings:
    weights = tmp_path / "w.safetensors"
    weights.touch()
    return Settings(
        model="pkg.nets:make",
        weights=weights,
        data="pkg.data:make",
        image_size=64,
        normalize="0.5,0.5,0.5/0.25,0.25,0.25",
        metric="top5",
        budget_bytes=4_194_304,
        budget_text="4MiB",
        max_latency_s=0.1 + 0.2,
        max_engine_bytes=8_000_001,
        max_drop=0.1 / 3,
        batch_size=(2, 16),
        space="quick",
        preset="extensive",
        trials=17,
        timeout_s=1e-7,
        sampler="tpe",
        storage='sqlite:///a "b".db',
        jobs=3,
        cluster="10.0.0.1:6379",
        resources={"GPU": 1.0, "target_orin": 2.0},
        executor="ray_actors",
        finish="none",
        seed=9,
        out=tmp_path / "out",
        cache=tmp_path / "cache",
    )


def test_the_written_file_reads_back_equal(tmp_path: Path) -> None:
    for settings in (Settings(), _full_settings(tmp_path), config.resolve({"budget": "12%"})[0]):
        write_config(settings, tmp_path / "config.toml")
        assert config.resolve({}, tmp_path / "config.toml")[0] == settings


def test_every_setting_is_an_option(tmp_path: Path) -> None:
    full = _full_settings(tmp_path)
    written = to_options(dataclasses.replace(full, cluster="auto"))
    assert set(written) == set(config.OPTIONS)


@given(st.floats(min_value=1e-9, max_value=1e6, allow_nan=False), st.integers(1, 2**50))
def test_numbers_survive_the_file_exactly(seconds: float, size: int) -> None:
    options = to_options(Settings(max_latency_s=seconds, max_engine_bytes=size, budget_bytes=size))
    read = config.resolve(options)[0]
    assert (read.max_latency_s, read.max_engine_bytes, read.budget_bytes) == (seconds, size, size)


def test_resolving_needs_no_torch() -> None:
    code = "import sys; from autocomp import config; config.resolve({'budget': '4MB'}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:p%40ss:w/rd@host:5432/db", "postgresql://me:***@host:5432/db"),
        ("postgresql+psycopg://:secret@/db?host=/run", "postgresql+psycopg://:***@/db?host=/run"),
        ("postgresql://host/db?user=me&password=secret&sslmode=require", None),
        ("sqlite:////home/me/a:b@c.db", "sqlite:////home/me/a:b@c.db"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
    ],
)
def test_passwords_are_written_nowhere(url: str, shown: str | None, tmp_path: Path) -> None:
    from autocomp.core.settings import without_password

    settings, _ = config.resolve({"storage": url}, None)
    assert settings.storage == url
    shown = shown or "postgresql://host/db?user=me&password=***&sslmode=require"
    assert without_password(url) == shown
    assert settings.to_json()["storage"] == shown
    write_config(settings, tmp_path / "config.toml")
    assert f'"{shown}"' in (tmp_path / "config.toml").read_text()

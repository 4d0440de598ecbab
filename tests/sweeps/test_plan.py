"""The file of a sweep becomes its searches; what cannot be is one line with file, key, value and what is allowed."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from autocomp import cli, config
from autocomp.errors import ConfigError, UnsupportedError
from autocomp.sweeps import plan

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(text: str, flags: dict[str, Any] | None = None, out: Path | None = None) -> plan.Sweep:
    file = Path("grid.toml")
    file.write_text(text, encoding="utf-8")
    return plan.read(file, flags or {}, out)


def test_every_combination_is_one_search_in_the_order_of_the_file(tmp_path: Path) -> None:
    sweep = read(
        'sweep = {models = ["resnet18", "pkg.nets:make"], targets = ["cpu-openvino", "cpu-onnxruntime"], '
        'budgets = ["4MB", "12%"], seeds = [0, 3]}\nsearch = {max-drop = "1%", trials = 9}'
    )
    assert [s.name for s in sweep.searches[:5]] == [
        "resnet18-4MB-cpu-openvino-s0",
        "resnet18-4MB-cpu-openvino-s3",
        "resnet18-12pct-cpu-openvino-s0",
        "resnet18-12pct-cpu-openvino-s3",
        "resnet18-4MB-cpu-onnxruntime-s0",
    ]
    assert len(sweep.searches) == 16
    last = sweep.searches[-1]
    assert (last.model, last.target, last.budget) == ("pkg-make", "cpu-onnxruntime", "12%")
    assert (last.settings.model, last.settings.seed) == ("pkg.nets:make", 3)
    assert sweep.folder == tmp_path / "runs" / "grid"
    for search in sweep.searches:
        assert (search.settings.max_drop, search.settings.trials) == (0.01, 9)
        assert search.settings.cache == tmp_path / "runs" / "grid" / "cache"
        assert search.settings.out == sweep.folder / search.name
        assert search.name == config.default_out(search.settings).name


def test_lists_may_be_left_out_and_flags_win(tmp_path: Path) -> None:
    sweep = read('search = {budget = "4MB", seed = 2, trials = "many", cache = "elsewhere"}', {"trials": "7"}, tmp_path)
    (search,) = sweep.searches
    assert search.name == "resnet18-4MB-cpu-onnxruntime-s2"
    assert (search.settings.trials, search.settings.out.parent) == (7, tmp_path)
    assert search.settings.cache == tmp_path / "elsewhere"
    assert not sweep.own_cache
    assert sweep.provenance["trials"] == "flag"
    assert sweep.provenance["seed"] == "grid.toml"
    assert plan.read({}, {}).searches[0].name == "resnet18-free-cpu-onnxruntime-s0"


def test_models_that_are_tables(tmp_path: Path) -> None:
    Path("w.safetensors").touch()
    sweep = read(
        'sweep.models = [{model = "resnet18", weights = "w.safetensors", image-size = 64}, '
        '{model = "resnet18", normalize = "none", name = "plain"}]\nsearch.image_size = 32'
    )
    first, second = (s.settings for s in sweep.searches)
    assert (first.weights, first.image_size, first.normalize) == (Path("w.safetensors"), 64, "imagenet")
    assert (second.weights, second.image_size, second.normalize) == (None, 32, "none")
    assert [s.model for s in sweep.searches] == ["resnet18", "plain"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sweep = 3", "grid.toml: sweep = 3; give a table [sweep]"),
        ("[sweeps]", "grid.toml: unknown table 'sweeps'; did you mean sweep"),
        ("[sweep", "grid.toml: not valid TOML"),
        ("sweep.model = ['resnet18']", "grid.toml: [sweep]: unknown key 'model'; did you mean models?"),
        ("sweep.models = 'resnet18'", "grid.toml: [sweep] models = 'resnet18'; give a list"),
        ("sweep.seeds = []", "grid.toml: [sweep] seeds = []; give a list of at least one"),
        ("sweep.models = ['resnet18', 'resnet19']", "grid.toml: models[1]: unknown model 'resnet19'; did you mean"),
        ("sweep.models = [{weights = 'w'}]", "grid.toml: models[0]: no model"),
        ("sweep.models = [{model = 'resnet18', wieghts = 'w'}]", "models[0]: unknown key 'wieghts'; did you mean wei"),
        ("sweep.models = [{model = 'resnet18', weights = 'w'}]", "grid.toml: models[0].weights = 'w': there is no su"),
        ("sweep.models = [{model = 'resnet18', name = 'a/b'}]", "models[0].name = 'a/b': allowed are letters"),
        ("sweep.models = [3]", "grid.toml: models[0] = 3: text is expected"),
        ("sweep.targets = ['cpu-onnxruntime', 'cpu']", "grid.toml: targets[1]: unknown target 'cpu'; did you mean"),
        ("sweep.targets = [{name = 'x'}]", "grid.toml: targets[0] = {'name': 'x'}; give one target, not a table"),
        ("sweep.budgets = ['4MB', '4 apples']", "grid.toml: budgets[1] = '4 apples': not a size; write 4MB"),
        ("sweep.budgets = [0]", "grid.toml: budgets[0] = 0: a size is at least 1 byte"),
        ("sweep.budgets = ['4MB', '4MB']", "grid.toml: budgets[1]: another search has the folder resnet18-4MB-cpu"),
        ("sweep.seeds = [0, -1]", "grid.toml: seeds[1] = -1: allowed are whole numbers from 0 to 4294967295"),
        ("sweep.seeds = [true]", "grid.toml: seeds[0] = True: allowed are whole numbers"),
        ("sweep.models = ['x/b.py:net', 'y/b.py:net']", "models[1]: another search has the folder b-net-free"),
        ("search.trails = 3", "grid.toml: [search]: unknown option 'trails'; did you mean trials"),
        ("search.trials = 0", "grid.toml: [search] trials = 0: allowed are whole numbers from 1"),
        ("search.preset = 'quik'", "grid.toml: [search] preset: unknown preset 'quik'; did you mean quick?"),
        ("search.metric = 'acc'", "grid.toml: [search] metric: unknown metric 'acc'"),
        ("search.normalize = 'imagnet'", "grid.toml: [search] normalize: "),
        ("search.out = 'x'", "grid.toml: [search] out = 'x': not for a sweep: each search has a folder inside"),
        ("search.storage = 'sqlite:///x.db'", "storage = 'sqlite:///x.db': not for a sweep: each search keeps"),
        ("sweep.seeds = [1]\nsearch.seed = 1", "grid.toml: [search] seed: [sweep] has seeds; give the seed in one"),
    ],
)
def test_bad_files_are_one_clear_line(text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((ConfigError, UnsupportedError)) as caught:
        read(text)
    assert message in str(caught.value)
    assert "grid.toml" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert cli.run(["sweep", "grid.toml"]) == 2
    assert capsys.readouterr().err == f"error: {caught.value}\n"
    assert [p.name for p in Path().iterdir()] == ["grid.toml"]


@pytest.mark.parametrize("name", ["target", "budget", "seed", "model", "out", "storage"])
def test_options_that_a_sweep_lists_itself_are_no_flags(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--{name}: not for a sweep"):
        plan.read({}, {name: "1"})


def test_there_is_no_such_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["sweep", "none.toml"]) == 2
    assert capsys.readouterr().err == "error: none.toml: there is no such file\n"


def test_the_command_has_a_flag_for_every_common_option() -> None:
    own = {*plan.AXES.values(), *plan.NOT_COMMON, *plan.MODEL_KEYS}
    flags = set(inspect.signature(cli.sweep).parameters)
    assert set(config.OPTIONS) - own <= flags
    assert not flags & own - {"out"}


def test_the_shipped_example_and_the_file_in_the_docs_are_read() -> None:
    names = [s.name for s in plan.read(ROOT / "examples" / "sweep.toml", {}).searches]
    assert names == ["resnet20-120kB-cpu-onnxruntime-s0", "resnet20-8pct-cpu-onnxruntime-s0"]
    Path("net.safetensors").touch()
    Path("arrays.npz").touch()
    text = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")
    assert len(read(text.split("```toml\n")[1].split("```")[0]).searches) == 2 * 2 * 3 * 2

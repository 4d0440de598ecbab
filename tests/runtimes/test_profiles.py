"""Hardware profiles: every shipped one loads, and what is wrong in one is said with file, key and remedy."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocomp.core import shipped
from autocomp.errors import ConfigError, UnknownNameError
from autocomp.runtimes._profiles import UNITS, _Reader, list_targets, load_profile, load_target

GOOD = """
title = "A board"
runtime = "onnxruntime"
[precisions.conv2d]
run = ["float32", "int8"]
source = "data sheet, table 3"
[placement]
outputs = false
symmetric = true
source = "manual"
[channel_multiple]
int8 = { value = 32, unit = "channels", source = "manual" }
[limits]
memory_bytes = { value = 512, unit = "KiB", source = "data sheet" }
flash_bytes = { value = 2, unit = "MB", source = "data sheet" }
[options]
intra_op_num_threads = { value = 2, unit = "threads", source = "two cores" }
allow_spinning = false
[numbers]
memory_bandwidth_bytes_per_s = { value = 12.8, unit = "GB/s", source = "data sheet" }
launch_overhead_s = { value = 5, unit = "us", source = "measured" }
clock_hz = { value = 480, unit = "MHz", source = "data sheet" }
"""


def write(folder: Path, text: str) -> str:
    path = folder / "board.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", shipped.names("hw_profiles"))
def test_shipped_profiles_load(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile.title
    assert all(entry["source"] for entry in profile.numbers.values())


def test_figures_come_in_base_units_with_their_source(tmp_path: Path) -> None:
    profile = load_profile(write(tmp_path, GOOD))
    assert profile.name == "board"
    assert profile.precisions == {"conv2d": ("float32", "int8")}
    assert (profile.placement.outputs, profile.placement.elementwise, profile.placement.symmetric) == (
        False,
        True,
        True,
    )
    assert profile.channel_multiple == {"int8": 32}
    assert profile.limits == {"memory_bytes": 512 * 1024, "flash_bytes": 2_000_000}
    assert profile.options == {"intra_op_num_threads": 2, "allow_spinning": False}
    bandwidth = profile.numbers["numbers.memory_bandwidth_bytes_per_s"]
    assert bandwidth == {"value": 12.8e9, "unit": "B/s", "source": "data sheet", "written": "12.8 GB/s"}
    assert profile.numbers["numbers.launch_overhead_s"]["value"] == pytest.approx(5e-6, rel=1e-15)
    assert profile.numbers["numbers.clock_hz"]["value"] == 480e6
    assert profile.numbers["precisions.conv2d"] == {"source": "data sheet, table 3"}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("memory_bytes =", "memry_bytes =", "limits.memry_bytes: unknown key; did you mean memory_bytes?"),
        ("[limits]", "[limit]", "limit: unknown key; did you mean limits?"),
        ("[precisions.conv2d]", "[precisions.conv2]", "precisions.conv2: unknown key; did you mean conv2d?"),
        ("allow_spinning = false", "allow_spining = false", "options.allow_spining: unknown key"),
        ("allow_spinning = false", "allow_spinning = 0", "options.allow_spinning: is 0; allowed true, false"),
        ('unit = "KiB"', 'unit = "ms"', "limits.memory_bytes.unit: 'ms' is no unit of bytes; allowed B, KB"),
        ("value = 512", "value = 0", "limits.memory_bytes.value: must be a number above 0, is 0"),
        ("value = 512", "value = true", "limits.memory_bytes.value: must be a number above 0, is True"),
        ("value = 512", "value = nan", "limits.memory_bytes.value: must be a number above 0, is nan"),
        ('value = 32, unit = "channels"', 'value = 1.5, unit = "channels"', "must be a whole number of channels"),
        (', source = "measured"', "", "numbers.launch_overhead_s.source: missing"),
        (
            'memory_bytes = { value = 512, unit = "KiB", source = "data sheet" }',
            "memory_bytes = 512",
            "must be a table",
        ),
        ('"int8"]', '"int9"]', "precisions.conv2d.run: unknown precision 'int9'"),
        ('["float32", "int8"]', "[]", "precisions.conv2d.run: must be a list"),
        ('source = "data sheet, table 3"', "", "precisions.conv2d.source: missing"),
        ("outputs = false", "outputs = 0", "placement.outputs: must be true or false, is 0"),
        ('source = "manual"\n[channel', "[channel", "placement.source: missing"),
        ('runtime = "onnxruntime"', 'runtime = "onnx"', "runtime: unknown runtime 'onnx'; known: "),
        ('title = "A board"', "", "title: missing"),
        ('title = "A board"', 'title = "A board"\ndevice = 3', "device: must be text, is 3"),
        ('title = "A board"', 'title = "A board"\nlatency_table = "x.json"', "latency_table: no file"),
        ("clock_hz =", "peak_int8_ops_per_s =", "peak_int8_ops_per_s.unit: 'MHz' is no unit of throughput"),
        ("clock_hz =", "peak_int9_ops_per_s =", "unknown key; did you mean peak_int8_ops_per_s?"),
        ('title = "A board"', "title = 3", "title: must be text, is 3"),
        ('title = "A board"', "title = ", "not valid TOML"),
    ],
)
def test_mistakes_name_file_key_and_remedy(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        load_profile(path)
    message = str(caught.value)
    assert message.startswith(path)
    assert said in message
    assert "\n" not in message


def test_precisions_are_required(tmp_path: Path) -> None:
    path = write(tmp_path, 'title = "A"\nruntime = "onnxruntime"\n')
    with pytest.raises(ConfigError, match="precisions: missing; it is required"):
        load_profile(path)


@given(data=st.data(), value=st.floats(min_value=1e-6, max_value=1e6))
def test_units_convert_by_their_factor(data: st.DataObject, value: float) -> None:
    dimension = data.draw(st.sampled_from(["time", "bandwidth", "frequency", "throughput"]))
    unit = data.draw(st.sampled_from(sorted(UNITS[dimension])))
    number = _Reader(Path("x.toml")).number({"value": value, "unit": unit, "source": "s"}, "k", dimension)
    assert number["value"] == value * UNITS[dimension][unit]
    assert UNITS[dimension][number["unit"]] == 1


def test_unknown_target_offers_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean cpu-onnxruntime"):
        load_target("cpu-onxruntime")


def test_targets_are_listed_with_why_not() -> None:
    rows = {row["name"]: row for row in list_targets()}
    assert set(rows) == set(shipped.names("hw_profiles"))
    assert rows["cpu-onnxruntime"]["usable"] is True
    assert rows["cpu-onnxruntime"]["latency"] == "measured"
    assert all(bool(row["why_not"]) is (row["latency"] != "measured") for row in rows.values())
    assert all(row["usable"] is (row["latency"] != "unusable") for row in rows.values())
    assert rows["cortex-m7"]["latency"] == "predicted"
    assert "no compiler for this device" in rows["cortex-m7"]["why_not"]


def test_a_profile_of_another_cpu_is_not_measured_on_this_one() -> None:
    why = load_target("xeon-vnni").cannot_measure()
    assert why is None or ("Platinum 8256" in why and "take cpu-onnxruntime" in why)


def test_documentation_names_every_key() -> None:
    from autocomp import runtimes
    from autocomp.runtimes import _profiles as schema

    path = Path(__file__).parents[2] / "docs" / "hardware_profiles.md"
    text = path.read_text(encoding="utf-8")
    keys = {*schema.LAYER_KINDS, *schema.PRECISIONS, *schema.LIMITS, *schema._PLACEMENT}
    keys |= {k for k in schema.NUMBERS if not k.startswith(("peak_", "energy_"))}
    keys |= {option for name in runtimes.names() for option in runtimes.module(name).OPTIONS}
    assert [k for k in sorted(keys) if f"`{k}`" not in text] == []


def test_example_of_the_documentation_loads(tmp_path: Path) -> None:
    path = Path(__file__).parents[2] / "docs" / "hardware_profiles.md"
    example = path.read_text(encoding="utf-8").split("```toml\n")[1].split("```")[0]
    assert load_profile(write(tmp_path, example)).limits == {"memory_bytes": 512 * 1024}

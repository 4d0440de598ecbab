"""Every shipped hardware profile, held to the contract of runtimes; absent runtimes skip with the reason.

A new profile is found by its file. One whose arithmetic differs states its tolerance in ``TOLERANCES``.
"""

from typing import ClassVar

import pytest

from autocomp.core import shipped
from autocomp.testing.runtime_contract import RuntimeContract

TOLERANCES: dict[str, dict[str, float]] = {}

for _name in shipped.names("hw_profiles"):
    _class = f"Test_{_name.replace('-', '_')}"
    globals()[_class] = type(_class, (RuntimeContract,), {"profile_name": _name, **TOLERANCES.get(_name, {})})


@pytest.mark.slow
class TestCompiledTorch(RuntimeContract):
    profile_name = "cpu-torch"
    options: ClassVar[dict[str, str]] = {"mode": "compiled"}

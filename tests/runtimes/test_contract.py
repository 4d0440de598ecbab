"""Every shipped hardware profile, held to the contract of runtimes; absent runtimes skip with the reason.

A new profile is found by its file. One whose arithmetic differs states its tolerance in ``TOLERANCES``.
"""

import pytest

from autocomp.core import shipped
from autocomp.runtimes._profiles import load_profile
from autocomp.testing.runtime_contract import RuntimeContract

TOLERANCES: dict[str, dict[str, float]] = {}

for _name in shipped.names("hw_profiles"):
    _class = f"Test_{_name.replace('-', '_')}"
    _case = type(_class, (RuntimeContract,), {"profile_name": _name, **TOLERANCES.get(_name, {})})
    globals()[_class] = pytest.mark.gpu(_case) if load_profile(_name).runtime.startswith("tensorrt") else _case

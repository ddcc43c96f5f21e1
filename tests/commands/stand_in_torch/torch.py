"""A stand-in for torch that sees what `$STAND_IN_TORCH` says: JSON, or `broken`."""

import json
import os
from types import SimpleNamespace

_SAID = os.environ["STAND_IN_TORCH"]
if _SAID == "broken":
    raise ImportError("libcudart.so.12: cannot open shared object file")
_SEEN = json.loads(_SAID)

__version__ = "2.12.0"
version = SimpleNamespace(cuda=_SEEN.get("cuda"), hip=_SEEN.get("hip"))
cuda = SimpleNamespace(
    is_available=lambda: "gpu" in _SEEN,
    get_device_properties=lambda _: SimpleNamespace(
        name=_SEEN["gpu"], total_memory=_SEEN["gb"] * 1e9, major=_SEEN["major"]
    ),
)

"""The reference driver, the tables, and k-diffusion's own sampling code where it is installed."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from avila_diffusion.config import NoiseConfig
from avila_diffusion.sampling.guidance import Call, Denoise, Denoised
from avila_diffusion.sampling.schedules import NoiseTable

HERE = Path(__file__).parent
Driver = Callable[[Generator[Call, Denoised, Tensor], Denoise], Tensor]


@pytest.fixture(scope="session")
def drive() -> Driver:
    """Feed a sampler until it returns its latent."""

    def run(generator: Generator[Call, Denoised, Tensor], denoise: Denoise) -> Tensor:
        try:
            call = next(generator)
            while True:
                call = generator.send(denoise(call))
        except StopIteration as end:
            latent: Tensor = end.value
            return latent

    return run


@pytest.fixture(scope="session")
def table() -> NoiseTable:
    """Stable Diffusion 1's noise."""
    return NoiseTable.from_config(NoiseConfig())


@pytest.fixture(scope="session")
def k_oracle() -> dict[str, Any]:
    """k-diffusion 0.1.1 run in float64 with a formula for a network; the set-up stands in the file."""
    loaded: dict[str, Any] = json.loads((HERE / "k_diffusion.json").read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="session")
def k_diffusion() -> ModuleType:
    """k-diffusion's sampling.py and external.py alone; the package itself wants seventeen others."""
    found = importlib.util.find_spec("k_diffusion")
    if found is None or not found.submodule_search_locations:
        pytest.skip("k-diffusion is not installed")
    folder = Path(found.submodule_search_locations[0])
    package, tools = ModuleType("live_k_diffusion"), ModuleType("live_k_diffusion.utils")
    tools.append_dims = lambda x, dims: x[(...,) + (None,) * (dims - x.ndim)]  # type: ignore[attr-defined]
    package.utils = tools  # type: ignore[attr-defined]
    package.__path__ = [str(folder)]
    solvers = ModuleType("torchdiffeq")
    solvers.odeint = None  # type: ignore[attr-defined]
    stubs = {
        "torchdiffeq": solvers,
        "torchsde": ModuleType("torchsde"),
        package.__name__: package,
        tools.__name__: tools,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, stub in stubs.items():
            patch.setitem(sys.modules, name, stub)
        for name in ("sampling", "external"):
            setattr(package, name, importlib.import_module(f"{package.__name__}.{name}"))
            patch.delitem(sys.modules, f"{package.__name__}.{name}")
    return package


@pytest.fixture
def formula_noise() -> Callable[[], Callable[[float, float], Tensor]]:
    """Noise that is a formula: call k of a run gives sqrt(2) cos(0.7 i + 1.3 k) at element i of (1, 4, 4, 4)."""

    def make() -> Callable[[float, float], Tensor]:
        index = torch.arange(64, dtype=torch.float64)
        count = -1

        def noise(sigma: float, sigma_next: float) -> Tensor:
            nonlocal count
            count += 1
            return (2**0.5 * torch.cos(0.7 * index + 1.3 * count)).reshape(1, 4, 4, 4)

        return noise

    return make

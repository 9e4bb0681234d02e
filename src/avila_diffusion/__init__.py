"""avila_diffusion: a complete Stable Diffusion engine.

    from avila_diffusion import AvilaDiffusion
    diffusion = AvilaDiffusion.with_model("dreamshaper_8.safetensors", steps=20)
    image = diffusion.text_to_image("a beautiful sunset over mountains", "ugly, blurry", 512, 512)
    image.save_png("output.png")

Names are loaded when they are first used, so that importing the package costs next to nothing and never loads torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from .version import __version__

if TYPE_CHECKING:
    from .api import AvilaDiffusion
    from .errors import AvilaError
    from .grid import make_grid
    from .images import Image
    from .pictures import Picture
    from .request import GenerateRequest
    from .result import GenerateResult, Progress

_HOMES = {
    "AvilaDiffusion": "api",
    "AvilaError": "errors",
    "GenerateRequest": "request",
    "GenerateResult": "result",
    "Image": "images",
    "Picture": "pictures",
    "Progress": "result",
    "make_grid": "grid",
}

__all__ = [
    "AvilaDiffusion",
    "AvilaError",
    "GenerateRequest",
    "GenerateResult",
    "Image",
    "Picture",
    "Progress",
    "__version__",
    "make_grid",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

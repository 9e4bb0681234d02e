"""What there is: models, samplers, upscalers, styles and all else that clients fill their menus with.

Names of files are relative to their folder, as `Entry.name` has them: where the folder lies is nobody's business.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ... import machine
from ...checkpoint.header import Header, read_header
from ...errors import FileProblem, ModelNotFound
from ...limits import LATENT_UPSCALERS
from ...sampling.names import SAMPLERS, SCHEDULES
from ..entries import Entry
from ..service import Service
from .mapping import known_styles

PICTURE_UPSCALERS = ("None", "Lanczos", "Nearest")
"""Those that enlarge pictures; "None" leaves one as it is. It is the first: clients count on that."""
_LARGEST_METADATA = 100_000
"""Characters of a LoRA's training notes that are sent; of longer ones only the short entries."""
Shown = Callable[[Service], Awaitable[Any]]


def routes(service: Service) -> list[Route]:
    """A route of each list."""
    return [
        Route(f"/sdapi/v1/{name}", _told(service, shown), methods=["GET"], name=f"sdapi-{name}")
        for name, shown in LISTS.items()
    ]


def _told(service: Service, shown: Shown) -> Callable[[Request], Awaitable[Response]]:
    async def told(request: Request) -> Response:
        return JSONResponse(await shown(service))

    told.__doc__ = shown.__doc__
    return told


async def _models(service: Service) -> Any:
    """Checkpoints. options' sd_model_checkpoint is the title of one."""
    return [
        {
            "title": entry.title,
            "model_name": entry.stem,
            "hash": entry.short_hash,
            "sha256": entry.digest,
            "filename": entry.name,
            "config": None,
        }
        for entry in service.models.entries()
    ]


async def _vaes(service: Service) -> Any:
    """VAE files."""
    return [{"model_name": entry.name, "filename": entry.name} for entry in service.models.entries("vae")]


async def _samplers(service: Service) -> Any:
    """Samplers, with the schedule that Automatic means where it is not uniform."""
    return [
        {"name": info.name, "aliases": list(info.aliases), "options": _sampler_options(info.key)}
        for info in SAMPLERS.values()
    ]


def _sampler_options(key: str) -> dict[str, str]:
    info = SAMPLERS[key]
    options = {
        "scheduler": info.automatic if info.automatic != "uniform" else None,
        "second_order": "True" if info.second_order else None,
        "brownian_noise": "True" if info.brownian else None,
        "uses_ensd": "True" if info.stochastic and not info.brownian else None,
        "discard_next_to_last_sigma": "True" if info.discard_penultimate else None,
    }
    return {name: value for name, value in options.items() if value is not None}


async def _schedulers(service: Service) -> Any:
    """Schedules of noise levels."""
    return [
        {
            "name": info.key,
            "label": info.name,
            "aliases": list(info.aliases) or None,
            "default_rho": info.rho,
            "need_inner_model": "rho" not in info.options and info.key not in ("automatic", "exponential"),
        }
        for info in SCHEDULES.values()
    ]


async def _upscalers(service: Service) -> Any:
    """What makes a picture larger."""
    nothing = {"model_name": None, "model_path": None, "model_url": None, "scale": 4}
    return [{"name": name} | nothing for name in PICTURE_UPSCALERS]


async def _latent_modes(service: Service) -> Any:
    """What makes a latent larger, in a high-resolution fix."""
    return [{"name": name} for name in LATENT_UPSCALERS]


async def _styles(service: Service) -> Any:
    """Styles of styles.csv, in the models folder or beside it."""
    styles = await asyncio.to_thread(known_styles, service.settings.models_dir)
    return [
        {"name": style.name, "prompt": style.prompt, "negative_prompt": style.negative_prompt}
        for style in styles.values()
    ]


async def _loras(service: Service) -> Any:
    """LoRA files, with the name and the notes that training left in them."""
    return await asyncio.to_thread(lambda: [_lora(entry) for entry in service.models.entries("lora")])


def _lora(entry: Entry) -> dict[str, Any]:
    metadata = _metadata(entry)
    alias = metadata.get("ss_output_name") or entry.stem
    return {"name": entry.stem, "alias": alias, "path": entry.name, "metadata": metadata}


def _metadata(entry: Entry) -> dict[str, str]:
    head = _head(entry)
    found = {} if head is None else head.metadata
    if sum(map(len, found.values())) <= _LARGEST_METADATA:
        return found
    return {name: value for name, value in found.items() if len(value) <= 1000}


async def _embeddings(service: Service) -> Any:
    """Textual inversions. Their size is told of safetensors files, whose heads say it."""
    entries = service.models.entries("embedding")
    loaded = await asyncio.to_thread(lambda: {entry.stem: _embedding(entry) for entry in entries})
    return {"loaded": loaded, "skipped": {}}


def _embedding(entry: Entry) -> dict[str, Any]:
    head = _head(entry)
    shapes = [] if head is None else [one.shape for one in head.entries.values() if len(one.shape) in (1, 2)]
    vectors = {shape[0] if len(shape) == 2 else 1 for shape in shapes}
    return {
        "step": None,
        "sd_checkpoint": None,
        "sd_checkpoint_name": None,
        "shape": sum(shape[-1] for shape in shapes) or None,
        "vectors": vectors.pop() if len(vectors) == 1 else None,
    }


def _head(entry: Entry) -> Header | None:
    if entry.path is None or entry.path.suffix.lower() not in (".safetensors", ".sft"):
        return None
    return _read_head(entry.path, entry.size, entry.changed)


@functools.lru_cache(maxsize=4096)
def _read_head(path: Path, size: int, changed: float) -> Header | None:
    """The head of a file that has this size and time; without its tensors' places, which nobody asks for here."""
    try:
        head = read_header(path)
    except (FileProblem, ModelNotFound):
        return None
    few = dict(list(head.entries.items())[:8])
    return Header(path, few, head.metadata, head.size, head.mtime_ns)


async def _memory(service: Service) -> Any:
    """Main memory in bytes. Of a graphics card only the process that draws knows."""
    found = await asyncio.to_thread(machine.memory)
    if found is None:
        ram: dict[str, Any] = {"error": "this system does not tell its memory"}
    else:
        ram = {"free": found.available, "used": found.total - found.available, "total": found.total}
    held = service.health().worker_memory
    return {"ram": ram, "cuda": {"error": "unavailable"}, "worker": {"used": held}}


async def _flags(service: Service) -> Any:
    """What of the command line a client may know."""
    settings = service.settings
    return {
        "api": True,
        "nowebui": False,
        "listen": settings.host not in ("127.0.0.1", "localhost", "::1"),
        "port": settings.port,
        "api_auth": None,
        "api_server_stop": False,
        "ckpt_dir": None,
        "use_cpu": ["all"] if settings.device == "cpu" else [],
    }


async def _scripts(service: Service) -> Any:
    """Scripts: none are built here."""
    return {"txt2img": [], "img2img": []}


async def _none(service: Service) -> Any:
    """A kind of thing of which there is none here."""
    return []


LISTS: dict[str, Shown] = {
    "sd-models": _models,
    "sd-vae": _vaes,
    "samplers": _samplers,
    "schedulers": _schedulers,
    "upscalers": _upscalers,
    "latent-upscale-modes": _latent_modes,
    "prompt-styles": _styles,
    "loras": _loras,
    "embeddings": _embeddings,
    "memory": _memory,
    "cmd-flags": _flags,
    "scripts": _scripts,
    "script-info": _none,
    "extensions": _none,
    "hypernetworks": _none,
    "face-restorers": _none,
    "realesrgan-models": _none,
}
"""Name of the route → what it tells."""

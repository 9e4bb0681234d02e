"""OpenVINO as a peer: a network of diffusers converted once, kept on disk, and run in float32 with our number of threads.

`python -m benchmarks.openvino_peer NETWORK CELLS` converts one, in a process of its own because that takes memory. Nothing
imports torch before something has to be converted: a user of OpenVINO does not wait for it either.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from avila_diffusion.machine import cache_folder

from . import children

Array = npt.NDArray[np.float32]
Name = Literal["text", "unet", "decode"]


def installed() -> bool:
    return importlib.util.find_spec("openvino") is not None


def shapes(name: Name, cells: int) -> list[tuple[int, ...]]:
    """Of the inputs of a network of SD 1.5 for a latent of cells x cells, with guidance."""
    if name == "text":
        return [(2, 77)]
    if name == "unet":
        return [(2, 4, cells, cells), (2,), (2, 77, 768)]
    return [(1, 4, cells, cells)]


def place(name: Name, cells: int) -> Path:
    """Where the converted form of a network is kept."""
    import openvino

    key = hashlib.sha256(repr((1, openvino.__version__, shapes(name, cells))).encode()).hexdigest()[:12]
    return cache_folder() / "benchmarks" / f"openvino-sd1-{name}-{key}.xml"


def converted(name: Name, cells: int) -> tuple[Path, float]:
    """(the converted network, seconds its conversion took when it was made). Needs diffusers the first time."""
    path = place(name, cells)
    if not (path.exists() and path.with_suffix(".seconds").exists()):
        print(f"OpenVINO: converting {name} for {cells}x{cells}, once", flush=True)
        children.run(["-m", "benchmarks.openvino_peer", name, str(cells)])
    return path, float(path.with_suffix(".seconds").read_text(encoding="ascii"))


def load(path: Path, threads: int) -> Callable[..., Array]:
    """The network compiled for this processor: arrays in, array out.

    float32 is asked for: where the processor has bfloat16 OpenVINO would round to that of its own accord.
    """
    import openvino

    core: Any = openvino.Core()
    wanted = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }
    request = core.compile_model(path, "CPU", wanted).create_infer_request()

    def run(*arrays: npt.NDArray[Any]) -> Array:
        found: Array = request.infer(list(arrays), share_inputs=True)[0]
        return found

    return run


def main() -> None:
    # Telemetry would wait for a network that benchmarks have no business with.
    os.environ["OPENVINO_TELEMETRY_DISABLED"] = "1"
    import openvino
    import torch

    from . import diffusers_peer as peer

    name, cells = sys.argv[1], int(sys.argv[2])
    makers: dict[str, Callable[[], Any]] = {
        "text": lambda: peer.TextCall(peer.text()),
        "unet": lambda: peer.UNetCall(peer.unet("sd1")),
        "decode": lambda: peer.DecodeCall(peer.vae()),
    }
    wanted: Any = name
    inputs = [torch.ones(shape, dtype=torch.int64 if name == "text" else None) for shape in shapes(wanted, cells)]
    module, path = makers[name](), place(wanted, cells)
    began = time.perf_counter()
    with torch.no_grad():
        network = openvino.convert_model(module, example_input=tuple(inputs), input=[tuple(x.shape) for x in inputs])
    path.parent.mkdir(parents=True, exist_ok=True)
    openvino.save_model(network, path, compress_to_fp16=False)
    path.with_suffix(".seconds").write_text(f"{time.perf_counter() - began:.1f}", encoding="ascii")


if __name__ == "__main__":
    main()

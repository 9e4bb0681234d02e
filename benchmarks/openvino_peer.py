"""OpenVINO as a peer: a network of diffusers converted once, kept on disk, and run in float32 with our number of threads."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from avila_diffusion.machine import cache_folder


def installed() -> bool:
    try:
        import openvino  # noqa: F401
    except ImportError:
        return False
    return True


def compile_network(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[[], Tensor]:
    """`module(*inputs)` as OpenVINO runs it, at these shapes; says how long conversion and compilation took.

    float32 is asked for: where the processor has bfloat16 OpenVINO would round to that of its own accord.
    """
    import openvino

    # Telemetry would wait for a network that benchmarks have no business with.
    os.environ["OPENVINO_TELEMETRY_DISABLED"] = "1"
    core: Any = openvino.Core()
    path = _place(name, inputs, openvino.__version__)
    began = time.perf_counter()
    if not path.exists():
        with torch.no_grad():
            converted = openvino.convert_model(module, example_input=inputs, input=[tuple(x.shape) for x in inputs])
        path.parent.mkdir(parents=True, exist_ok=True)
        openvino.save_model(converted, path, compress_to_fp16=False)
        del converted
    between = time.perf_counter()
    compiled = core.compile_model(
        path,
        "CPU",
        {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
        },
    )
    print(f"OpenVINO {name}: converted in {between - began:.1f} s, compiled in {time.perf_counter() - between:.1f} s")
    request = compiled.create_infer_request()
    arrays = [x.numpy() for x in inputs]

    def run() -> Tensor:
        return torch.from_numpy(request.infer(arrays, share_inputs=True)[0])

    return run


def _place(name: str, inputs: tuple[Tensor, ...], version: str) -> Path:
    key = hashlib.sha256(repr((version, [tuple(x.shape) for x in inputs])).encode()).hexdigest()[:12]
    return cache_folder() / "benchmarks" / f"{name}-{key}.xml"

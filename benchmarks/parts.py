"""What is measured, part by part. Each gives a record that JSON can hold; `report` makes tables of the records."""

from __future__ import annotations

import gc
import importlib.util
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from avila_diffusion.checkpoint.load import load_model
from avila_diffusion.kernels import native
from avila_diffusion.models.layers import keep_derived

from . import children, diffusers_peer, machine, openvino_peer
from .operations import decode_operations, unet_operations, watched
from .ours import Steps, open_model
from .picture import GUIDANCE, NEGATIVE, PROMPT
from .timing import interleave
from .weights import Family, checkpoint

Record = dict[str, Any]
Runs = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Options:
    """rounds: counted, of each candidate; whole pictures at most 2 of each. steps: of a whole picture."""

    peers: bool = False
    rounds: int = 5
    threads: int = 2
    steps: int = 20


def measure_machine(options: Options) -> Record:
    """Matrix rates by shape and library, and the rate of copying."""
    rates = {"x".join(map(str, shape)): machine.matrix_rates(shape) for shape in machine.SHAPES}
    return {"rates": rates, "copy_gb": machine.copy_rate()}


def measure_step(options: Options) -> Record:
    return _sd1_step(64, options)


def measure_step96(options: Options) -> Record:
    return _sd1_step(96, options)


def _sd1_step(cells: int, options: Options) -> Record:
    """One model call with guidance as a whole run makes it; the peers': their UNet alone, on a batch of two."""
    fast, lean = (Steps(open_model("sd1", memory, options.threads), cells * 8) for memory in ("fast", "lean"))
    runs: Runs = {"fast": fast, "lean": lean}
    if options.peers:
        runs |= _unet_peers("sd1", cells, options.threads)
    rate = machine.matrix_rate()
    seconds = interleave(runs, options.rounds)
    with watched() as shares:
        fast()
    operations = unet_operations("sd1", cells, cells, batch=2)
    return {"seconds": seconds, "operations": operations, "matrix_gflops": rate, "shares": shares.rows()}


def measure_sdxl(options: Options) -> Record:
    """Diffusers' float32 weights (10 GB) and all that `fast` keeps (14 GB) do not fit in 24 GB together: first `lean`, from the
    mapped float16 file, is interleaved with diffusers, then, diffusers gone, `fast` with the same `lean`.
    """
    lean = Steps(open_model("sdxl", "lean", options.threads), 1024)
    runs: Runs = {"lean": lean}
    if options.peers:
        runs |= _unet_peers("sdxl", 128, options.threads)
    rate = machine.matrix_rate()
    seconds = interleave(runs, options.rounds)
    runs.clear()
    gc.collect()
    native.give_back()
    fast = Steps(open_model("sdxl", "fast", options.threads), 1024)
    again = interleave({"fast": fast, "lean": lean}, options.rounds)
    with watched() as shares:
        fast()
    operations = unet_operations("sdxl", 128, 128, batch=2)
    record = {"seconds": seconds, "again": again, "operations": operations, "matrix_gflops": rate}
    return record | {"shares": shares.rows()}


def _unet_peers(family: Family, cells: int, threads: int) -> Runs:
    """The peers that are installed; the others are told."""
    runs: Runs = {}
    width = 768 if family == "sd1" else 2048
    x, context, t = torch.randn(2, 4, cells, cells), torch.randn(2, 77, width), torch.full((2,), 500.0)
    if family == "sd1" and _have("OpenVINO", openvino_peer.installed()):
        compiled = openvino_peer.load(openvino_peer.converted("unet", cells)[0], threads)
        arrays = [tensor.numpy() for tensor in (x, t, context)]
        runs["openvino"] = lambda: compiled(*arrays)
    if _have("diffusers", diffusers_peer.installed()):
        network, by_pixel = diffusers_peer.unet(family), x.contiguous(memory_format=torch.channels_last)
        added = {"text_embeds": torch.randn(2, 1280), "time_ids": torch.full((2, 6), 1024.0)}
        more = {} if family == "sd1" else {"added_cond_kwargs": added}
        runs["diffusers"] = torch.no_grad()(lambda: network(by_pixel, t, context, **more))
    return runs


def _have(name: str, installed: bool) -> bool:
    if not installed:
        print(f"{name} is not installed: left out", flush=True)
    return installed


def measure_decode(options: Options) -> Record:
    return _decode(64, options)


def measure_decode1024(options: Options) -> Record:
    return _decode(128, options)


@torch.no_grad()
def _decode(cells: int, options: Options) -> Record:
    """Decoding one latent of SD 1.5 of cells x cells."""
    fast, lean = load_model(checkpoint("sd1")).vae, load_model(checkpoint("sd1")).vae
    keep_derived(lean, 0)
    z = torch.randn(1, 4, cells, cells)
    runs: Runs = {"fast": lambda: fast.decode(z), "lean": lambda: lean.decode(z)}
    if options.peers and _have("diffusers", diffusers_peer.installed()):
        network, by_pixel = diffusers_peer.vae(), z.contiguous(memory_format=torch.channels_last)
        runs["diffusers"] = lambda: network.decode(by_pixel)
    if options.peers and _have("OpenVINO", openvino_peer.installed()):
        compiled, array = openvino_peer.load(openvino_peer.converted("decode", cells)[0], options.threads), z.numpy()
        runs["openvino"] = lambda: compiled(array)
    rate = machine.matrix_rate()
    seconds = interleave(runs, options.rounds)
    with watched() as shares:
        fast.decode(z)
    operations = decode_operations(cells, cells)
    return {"seconds": seconds, "operations": operations, "matrix_gflops": rate, "shares": shares.rows()}


@torch.no_grad()
def measure_text(options: Options) -> Record:
    """SD 1.5's tower on both prompts of 77 tokens."""
    (tower,) = load_model(checkpoint("sd1")).text
    tokens = torch.arange(154).view(2, 77) + 1000
    runs: Runs = {"fast": lambda: tower(tokens, dtype=torch.float32)}
    if options.peers and _have("diffusers", diffusers_peer.installed()):
        network = diffusers_peer.text()
        runs["diffusers"] = lambda: network(tokens)
    if options.peers and _have("OpenVINO", openvino_peer.installed()):
        compiled = openvino_peer.load(openvino_peer.converted("text", 64)[0], options.threads)
        runs["openvino"] = lambda: compiled(tokens.numpy())
    return {"seconds": interleave(runs, options.rounds)}


def measure_load(options: Options) -> Record:
    """Fresh processes, page cache warm after the first; the best by what follows `import torch`."""
    runs = []
    for _ in range(max(options.rounds, 2)):
        ran = children.run(["-m", "benchmarks.first_step", str(checkpoint("sd1")), str(options.threads)])
        runs.append(json.loads(ran.output.splitlines()[-1]))
    best = min(runs, key=lambda times: times["begins"] - times["torch"])
    return {"best": best, "runs": runs}


def _generate(options: Options, png: Path, *more: str) -> list[str]:
    """The command line that a user would type."""
    asked = ["-m", "avila_diffusion", "generate", PROMPT, "-n", NEGATIVE, "-m", str(checkpoint("sd1")), "-W", "512"]
    asked += ["-H", "512", "--steps", str(options.steps), "--cfg", str(GUIDANCE), "--sampler", "DPM++ 2M"]
    asked += ["--schedule", "Karras", "--seed", "1", "-t", str(options.threads), "-q", "-o", str(png), *more]
    return asked


def measure_whole(options: Options) -> Record:
    """SD 1.5, 512x512, DPM++ 2M Karras with guidance: from process start to the end of it, each in a process of its own."""
    commands: dict[str, Callable[[Path], list[str]]] = {"ours": lambda png: _generate(options, png)}
    conversion = 0.0
    if options.peers and _have("diffusers", diffusers_peer.installed()):
        commands["diffusers"] = lambda png: _peer("diffusers", png, options)
    if options.peers and _have("OpenVINO", openvino_peer.installed()):
        names: tuple[openvino_peer.Name, ...] = ("text", "unet", "decode")
        conversion = sum(openvino_peer.converted(name, 64)[1] for name in names)
        commands["openvino"] = lambda png: _peer("openvino", png, options)
    if options.peers and _have("cyllama (stable-diffusion.cpp)", importlib.util.find_spec("cyllama") is not None):
        commands["sdcpp"] = lambda png: _sdcpp(png, options)
    record = _alternate(commands, min(options.rounds, 2))
    return record | {"steps": options.steps, "conversion": conversion}


def _peer(name: str, png: Path, options: Options) -> list[str]:
    return ["-m", "benchmarks.picture", name, str(png), "512", str(options.steps), str(options.threads)]


def _sdcpp(png: Path, options: Options) -> list[str]:
    """stable-diffusion.cpp's own command: it computes with the file's float16 weights, and with flash attention."""
    asked = ["-m", "cyllama.sd", "txt2img", "-m", str(checkpoint("sd1")), "-p", PROMPT, "-n", NEGATIVE, "-o", str(png)]
    asked += ["-W", "512", "-H", "512", "--steps", str(options.steps), "--cfg-scale", str(GUIDANCE), "--seed", "1"]
    return [
        *asked,
        "--sampler",
        "dpm++2m",
        "--scheduler",
        "karras",
        "--threads",
        str(options.threads),
        "--diffusion-fa",
    ]


def _alternate(commands: dict[str, Callable[[Path], list[str]]], rounds: int) -> Record:
    """Each command's seconds, and its most memory in bytes; each must have written its PNG."""
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    peaks: dict[str, dict[str, int | None]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for name, command in commands.items():
                png = Path(folder) / f"{name}-{number}.png"
                ran = children.run(command(png))
                if not png.exists():
                    raise RuntimeError(f"{name} wrote no {png.name}; it said: {ran.output[-300:]}")
                seconds[name].append(ran.seconds)
                before = peaks.get(name, {"held": None, "mapped": None})
                peaks[name] = {
                    "held": max(filter(None, (before["held"], ran.held)), default=None),
                    "mapped": max(filter(None, (before["mapped"], ran.mapped)), default=None),
                }
                print(f"  {name}: {ran.seconds:.1f} s", flush=True)
    return {"seconds": seconds, "peaks": peaks}


def measure_memory(options: Options) -> Record:
    """Peaks of whole pictures by our command line, as fast, lean and within 1.5 GB."""
    commands: dict[str, Callable[[Path], list[str]]] = {
        "fast": lambda png: _generate(options, png, "--memory", "fast"),
        "lean": lambda png: _generate(options, png, "--memory", "lean"),
        "1.5G": lambda png: _generate(options, png, "--max-memory", "1.5G"),
    }
    return _alternate(commands, min(options.rounds, 2)) | {"file": checkpoint("sd1").stat().st_size}


PARTS: dict[str, Callable[[Options], Record]] = {
    "machine": measure_machine,
    "step": measure_step,
    "decode": measure_decode,
    "whole": measure_whole,
    "memory": measure_memory,
    "load": measure_load,
    "text": measure_text,
    "step96": measure_step96,
    "decode1024": measure_decode1024,
    "sdxl": measure_sdxl,
}
"""In the order that they are measured in."""

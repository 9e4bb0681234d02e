"""A whole picture by a peer, in a process of its own: `python -m benchmarks.picture PEER PNG SIDE STEPS THREADS`.

PEER is diffusers (its networks from the seeded checkpoint, float32, channels_last) or openvino (from its converted files;
no torch is imported). Both are spared what their pipelines add: the prompt is cut by our tokenizer, and DPM++ 2M over
Karras' levels is the few lines below. Prints one line of JSON: the seconds at which each stage ended.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

BEGAN = time.perf_counter()
PROMPT, NEGATIVE, GUIDANCE = "a lighthouse on a cliff at dawn, oil painting", "blurry, low quality", 7.0
LATENT_SCALE = 0.18215

Array = npt.NDArray[np.float32]
Networks = tuple[Callable[..., Array], Callable[..., Array], Callable[..., Array]]


def levels(steps: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(SD's 1000 noise levels, Karras' of `steps` and a zero at their end)."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alphas = np.cumprod(1 - betas)
    table = np.sqrt((1 - alphas) / alphas)
    ramp = np.linspace(0, 1, steps)
    high, low = table[-1] ** (1 / 7), table[0] ** (1 / 7)
    return table, np.append((high + ramp * (low - high)) ** 7, 0.0)


def dpm_2m(denoise: Callable[[Array, float], Array], x: Array, sigmas: npt.NDArray[np.float64]) -> Array:
    """DPM-Solver++(2M) of Lu et al. 2022 from sigmas[0] to 0; denoise(x, sigma) → x0."""
    old, step = None, 0.0
    for sigma, following in pairwise(sigmas):
        x0 = denoise(x, float(sigma))
        if following == 0:
            return x0
        last, step = step, float(np.log(sigma / following))
        d = x0 if old is None else (1 + step / last / 2) * x0 - step / last / 2 * old
        x = (following / sigma * x + (1 - following / sigma) * d).astype(np.float32)
        old = x0
    return x


def tokens() -> npt.NDArray[np.int64]:
    """Both prompts, (2, 77)."""
    from avila_diffusion.text.tokenizer import clip_tokenizer

    return np.array([clip_tokenizer().encode_padded(text) for text in (NEGATIVE, PROMPT)], np.int64)


def diffusers_networks(threads: int) -> Networks:
    import torch

    from . import diffusers_peer

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    modules: list[Any] = [
        diffusers_peer.TextCall(diffusers_peer.text()),
        diffusers_peer.UNetCall(diffusers_peer.unet("sd1")),
        diffusers_peer.DecodeCall(diffusers_peer.vae()),
    ]

    def of(module: Any) -> Callable[..., Array]:
        def run(*arrays: npt.NDArray[Any]) -> Array:
            inputs = [torch.from_numpy(array) for array in arrays]
            inputs = [x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in inputs]
            found: Array = module(*inputs).numpy()
            return found

        return run

    text, unet, decode = map(of, modules)
    return text, unet, decode


def openvino_networks(side: int, threads: int) -> Networks:
    from .openvino_peer import load, place

    text, unet, decode = (load(place(name, side // 8), threads) for name in ("text", "unet", "decode"))
    return text, unet, decode


def main() -> None:
    peer, png, side, steps, threads = sys.argv[1:]
    from PIL import Image

    times = {"imported": time.perf_counter() - BEGAN}
    if peer == "openvino":
        text, unet, decode = openvino_networks(int(side), int(threads))
    else:
        text, unet, decode = diffusers_networks(int(threads))
    times["loaded"] = time.perf_counter() - BEGAN
    context = np.array(text(tokens()))
    table, sigmas = levels(int(steps))

    def denoise(x: Array, sigma: float) -> Array:
        t = np.interp(np.log(max(sigma, 1e-9)), np.log(table), np.arange(1000))
        entered = np.repeat((x / np.sqrt(sigma**2 + 1)).astype(np.float32), 2, axis=0)
        without, found = unet(entered, np.full(2, t, np.float32), context)
        x0: Array = (x - sigma * (without + GUIDANCE * (found - without)))[:1].astype(np.float32)
        return x0

    cells = int(side) // 8
    noise = np.random.default_rng(1).standard_normal((1, 4, cells, cells), np.float32)
    latent = dpm_2m(denoise, (noise * sigmas[0]).astype(np.float32), sigmas)
    times["sampled"] = time.perf_counter() - BEGAN
    picture = decode((latent / LATENT_SCALE).astype(np.float32))[0].transpose(1, 2, 0)
    Image.fromarray((np.clip(picture / 2 + 0.5, 0, 1) * 255).round().astype(np.uint8)).save(png)
    times["saved"] = time.perf_counter() - BEGAN
    print(json.dumps(times), flush=True)


if __name__ == "__main__":
    main()

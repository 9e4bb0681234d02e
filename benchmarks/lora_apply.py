"""How long a LoRA takes to be in effect on a model: read, match, and every changed weight derived once.

    python benchmarks/lora_apply.py MODEL LORA [--dtype bfloat16]

Prints a table for people and one line of JSON. What the page cache holds of the model decides much; run it twice.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from avila_diffusion.checkpoint.load import Model, load_model
from avila_diffusion.checkpoint.lora.apply import apply_loras, remove_loras
from avila_diffusion.checkpoint.lora.files import read_lora
from avila_diffusion.checkpoint.lora.targets import name_targets


def derive_all(model: Model, dtype: torch.dtype) -> float:
    """Seconds to derive every weight that a LoRA may change and that is not derived yet."""
    begin = time.perf_counter()
    for target in name_targets(model).values():
        target.layer.effective(target.parameter, torch.zeros(1, dtype=dtype))
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("lora", type=Path)
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    model = load_model(options.model)
    times = {"derive, without": derive_all(model, dtype)}
    begin = time.perf_counter()
    lora = read_lora(options.lora)
    times["read"] = time.perf_counter() - begin
    begin = time.perf_counter()
    (report,) = apply_loras(model, [(lora, 1.0, 1.0)])
    times["match and lay beside"] = time.perf_counter() - begin
    times["derive what changed"] = derive_all(model, dtype)
    begin = time.perf_counter()
    remove_loras(model)
    times["remove"] = time.perf_counter() - begin
    times["derive what was changed"] = derive_all(model, dtype)
    for what, seconds in times.items():
        print(f"{what:28} {seconds:8.3f} s")
    total = times["read"] + times["match and lay beside"] + times["derive what changed"]
    print(f"in effect after {total:.3f} s: {report.describe()}")
    print(
        json.dumps(
            {"dtype": options.dtype, "threads": torch.get_num_threads(), "matched": report.matched, "seconds": times}
        )
    )


if __name__ == "__main__":
    main()

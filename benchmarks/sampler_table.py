"""The tables of docs/samplers.md, from the rows themselves: `python -m benchmarks.sampler_table` writes them anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from avila_diffusion.sampling.names import SAMPLERS, SCHEDULES, SamplerInfo
from avila_diffusion.sampling.rows import calls_formula

DOCUMENT = Path(__file__).parent.parent / "docs" / "samplers.md"
GRIDS = {"schedule": "schedule", "ddim": "DDIM's own", "unipc": "uniform in time", "range": "its two ends"}
TEXT = {"scaled": "noise σ", "unit": "noise √(1+σ²)"}


def samplers() -> str:
    """Name, paper, order, calls, noise, grid, start, end and automatic schedule of every sampler."""
    titles = ("sampler", "paper", "order", "model calls of n steps", "noise", "levels", "start", "ends at", "Automatic")
    rows = [
        (
            info.name,
            info.paper,
            str(info.order or ""),
            _calls(info),
            _noise(info),
            GRIDS[info.grid] + (", LCM's timesteps" if info.denoiser == "lcm" else ""),
            TEXT[info.text_start],
            "0" if info.ends == "zero" else "the lowest level",
            "" if info.grid in ("ddim", "unipc") else SCHEDULES[info.automatic].name,
        )
        for info in SAMPLERS.values()
    ]
    return _table(titles, rows)


def schedules() -> str:
    """Name, key, options, end of every schedule, and whether ComfyUI's is another."""
    titles = ("schedule", "key", "options", "ends at", "ComfyUI")
    rows = [
        (
            info.name,
            info.key,
            ", ".join(f"rho ({info.rho:g})" if name == "rho" else name for name in info.options),
            "sigma_min" if info.ends == "lowest" else "0",
            "differs" if info.differs else "same",
        )
        for info in SCHEDULES.values()
        if info.key != "automatic"
    ]
    return _table(titles, rows)


TABLES: dict[str, Callable[[], str]] = {"samplers": samplers, "schedules": schedules}


def filled(text: str) -> str:
    """The document with each table between its two comments as it should be."""
    for name, make in TABLES.items():
        before, begin, rest = text.partition(f"<!-- table of {name} -->\n")
        _, end, after = rest.partition(f"<!-- end of {name} -->")
        text = before + begin + make() + end + after
    return text


def _calls(info: SamplerInfo) -> str:
    return (
        calls_formula(info).replace("floor(1000 / n)", "⌊1000/n⌋").replace("ceil(1000 / ⌊1000/n⌋)", "⌈1000/⌊1000/n⌋⌉")
    )


def _noise(info: SamplerInfo) -> str:
    if info.stochastic:
        return ("Brownian path" if info.brownian else "yes") + (f", eta {info.eta:g}" if info.eta is not None else "")
    extra = {"eta": "eta > 0", "s_churn": "s_churn > 0"}
    wanted = [words for name, words in extra.items() if name in info.options]
    return f"if {wanted[0]}" if wanted else "no"


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    DOCUMENT.write_text(filled(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
    print(DOCUMENT)


if __name__ == "__main__":
    main()

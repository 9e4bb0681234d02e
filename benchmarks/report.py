"""Records → what is said of them: the figures of the goal, tables in Markdown, and the document that holds them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

Record = Mapping[str, Any]
Records = Mapping[str, Record]

DOCUMENT = Path(__file__).parent.parent / "docs" / "performance.md"
BEGIN, END = "<!-- measured by scripts/bench -->\n", "<!-- end of measured -->"
NAMES = {
    "fast": "ours, fast",
    "lean": "ours, lean",
    "ours": "ours",
    "diffusers": "diffusers, channels_last",
    "openvino": "OpenVINO, float32",
    "sdcpp": "stable-diffusion.cpp, float16 weights",
    "1.5G": "ours, --max-memory 1.5G",
}
TITLES = {
    "step": "SD 1.5 UNet step, 64x64 latent, guidance",
    "step96": "SD 1.5 UNet step, 96x96 latent, guidance",
    "sdxl": "SDXL UNet step, 128x128 latent, guidance",
    "decode": "VAE decode to 512x512",
    "decode1024": "VAE decode to 1024x1024",
    "text": "SD 1.5's text tower, two prompts",
    "whole": "whole picture, SD 1.5, 512x512, guidance, process start to PNG",
}
BUDGET = 1.5e9
"""Bytes of `--max-memory 1.5G`."""


@dataclass(frozen=True)
class Figure:
    """One line of the table. value, least, aim: in `unit`, "x" for ratios; value None where it was not measured. part: of whose
    record it is made.

    better: whether it is to be at least that much, or at most.
    """

    part: str
    name: str
    against: str
    value: float | None
    least: float
    aim: float
    unit: Literal["x", "GB", "s"] = "x"
    better: Literal["more", "less"] = "more"

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        sign = 1 if self.better == "more" else -1
        if sign * self.value >= sign * self.aim:
            return "aim"
        return "yes" if sign * self.value >= sign * self.least else "no"

    def row(self) -> list[str]:
        bound = "" if self.better == "more" else "at most "

        def shown(value: float) -> str:
            return f"{value:.2f}{'x' if self.unit == 'x' else ' ' + self.unit}"

        measured = "-" if self.value is None else shown(self.value)
        return [self.name, self.against, measured, bound + shown(self.least), shown(self.aim), self.verdict]


def best(record: Record | None, name: str, under: str = "seconds") -> float | None:
    """The least seconds of a candidate; None where it did not run."""
    seconds = (record or {}).get(under, {}).get(name)
    return min(seconds) if seconds else None


def over(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a / b


def figures(records: Records) -> list[Figure]:
    """The lines of the table of figures, in its order."""
    step, decode, sdxl, whole = (records.get(name) for name in ("step", "decode", "sdxl", "whole"))
    fast = best(step, "fast")
    # SDXL's fast and diffusers' are never in memory together: lean, which ran beside each, joins them.
    joined, factor = (
        over(best(sdxl, "diffusers"), best(sdxl, "lean")),
        over(best(sdxl, "lean", "again"), best(sdxl, "fast", "again")),
    )
    peers = [found for name in ("diffusers", "openvino") if (found := best(whole, name)) is not None]
    return [
        Figure(
            "step",
            "SD 1.5 UNet step, 64x64, CFG, fast",
            "OpenVINO float32",
            over(best(step, "openvino"), fast),
            1.25,
            1.6,
        ),
        Figure("step", "the same", "diffusers channels_last", over(best(step, "diffusers"), fast), 1.6, 2.1),
        Figure("step", "the same, lean", "fast", over(best(step, "lean"), fast), 1.15, 1.05, better="less"),
        Figure(
            "decode",
            "VAE decode 512x512",
            "OpenVINO float32",
            over(best(decode, "openvino"), best(decode, "fast")),
            1.8,
            3,
        ),
        Figure(
            "sdxl",
            "SDXL UNet step, 128x128, CFG, fast",
            "diffusers channels_last",
            None if joined is None or factor is None else joined * factor,
            1.2,
            1.4,
        ),
        Figure(
            "whole",
            "whole picture, SD 1.5, 512x512, 20 steps, CFG",
            "the best of diffusers and OpenVINO",
            over(min(peers, default=None), best(whole, "ours")),
            1.4,
            2,
        ),
        *_memory_figures(records.get("memory")),
        _load_figure(records.get("load")),
    ]


def _memory_figures(record: Record | None) -> list[Figure]:
    record = record or {}
    peaks, file = record.get("peaks", {}), record.get("file", 2132625150)

    def held(name: str) -> float | None:
        return over(peaks.get(name, {}).get("held"), 1e9)

    slower, limit = over(best(record, "1.5G"), best(record, "fast")), 1.1 * file / 1e9
    return [
        Figure("memory", "SD 1.5 512x512, float16 file: peak, fast", "-", held("fast"), 6.5, 5, "GB", "less"),
        Figure("memory", "the same, lean", "the weights' file", held("lean"), limit + 1.5, limit + 0.6, "GB", "less"),
        Figure("memory", "peak with --max-memory 1.5G", "-", held("1.5G"), BUDGET / 1e9, BUDGET / 1e9, "GB", "less"),
        Figure("memory", "its time", "fast", slower, 1.5, 1.2, "x", "less"),
    ]


def _load_figure(record: Record | None) -> Figure:
    times = (record or {}).get("best")
    waited = None if times is None else times["begins"] - times["torch"]
    return Figure("load", "first UNet step begins after import torch", "-", waited, 1.5, 1, "s", "less")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def goal(records: Records) -> list[str]:
    """The table of figures."""
    return _goal(figures(records))


def _goal(shown: Sequence[Figure]) -> list[str]:
    head = ("figure", "against", "measured", "at least", "aim", "met")
    return table(head, [figure.row() for figure in shown])


def timings(name: str, record: Record) -> list[str]:
    """Best and median of each candidate, its ratio to our fastest, and its share of the matrix rate."""
    lines: list[str] = []
    for under in ("seconds", "again"):
        if not (measured := record.get(under)):
            continue
        base = min(min(measured[key]) for key in ("fast", "ours", "lean") if key in measured)
        rows = []
        for key, seconds in sorted(measured.items(), key=lambda item: min(item[1])):
            least, middle = min(seconds), sorted(seconds)[len(seconds) // 2]
            row = [NAMES.get(key, key), f"{least:.3g} s", f"{middle:.3g} s", f"{least / base:.2f}"]
            if "operations" in record:
                rate = record["operations"] / least / 1e9
                row.append(f"{rate:.0f} GFLOP/s = {rate / record['matrix_gflops']:.2f}")
            rows.append(row)
        head = [TITLES.get(name, name), "best", "median", "times the best of ours"]
        if "operations" in record:
            head.append(f"rate, as if direct; matrix rate {record['matrix_gflops']:.0f}")
        lines += [*table(head, rows), ""]
    return lines


def shares(name: str, record: Record) -> list[str]:
    """Where the time of one of ours goes, by kind of layer."""
    if not record.get("shares"):
        return []
    rate = record["matrix_gflops"]
    rows = [
        [
            row["kind"],
            f"{row['seconds'] * 1000:.0f} ms",
            f"{row['share']:.0%}",
            f"{row['gflop']:.0f}" if row["gflop"] else "",
            f"{row['gflops']:.0f} = {row['gflops'] / rate:.2f}" if row["gflops"] else "",
        ]
        for row in record["shares"]
    ]
    head = (f"{TITLES.get(name, name)}, fast", "time", "share", "GFLOP, as if direct", "GFLOP/s = of the matrix rate")
    return [*table(head, rows), ""]


def _machine(name: str, record: Record) -> list[str]:
    rows = [
        [shape, *(f"{rates.get(of, 0):.0f}" for of in ("torch", "numpy", "ours"))]
        for shape, rates in record["rates"].items()
    ]
    said = f"Copying reads and writes {record['copy_gb']:.1f} GB/s."
    return [*table(("product, GFLOP/s", "torch", "numpy", "ours"), rows), "", said, ""]


def _peaks(name: str, record: Record) -> list[str]:
    def gb(value: float | None) -> str:
        return "unknown" if value is None else f"{value / 1e9:.2f} GB"

    rows = [
        [NAMES.get(key, key), f"{min(record['seconds'][key]):.1f} s", gb(peak["held"]), gb(peak["mapped"])]
        for key, peak in record["peaks"].items()
    ]
    head = ("SD 1.5, 512x512, whole picture", "best time", "anonymous and shared, at most", "file-backed, at most")
    return [*table(head, rows), ""]


def _whole(name: str, record: Record) -> list[str]:
    once = f"OpenVINO's conversion, made once before, took {record['conversion']:.0f} s and is not counted"
    said = f"{record['steps']} steps. {once}."
    return [*timings(name, record), *_peaks(name, record), *([said, ""] if record["conversion"] else [])]


def _load(name: str, record: Record) -> list[str]:
    times = record["best"]
    began, ended = times["begins"] - times["torch"], times["ends"] - times["begins"]
    first = f"then {began:.2f} s until the first UNet step begins, which takes {ended:.2f} s"
    return [f"`import torch` {times['torch']:.2f} s; {first}.", ""]


def _timed(name: str, record: Record) -> list[str]:
    return [*timings(name, record), *shares(name, record)]


SECTIONS: dict[str, tuple[str, Callable[[str, Record], list[str]]]] = {
    "machine": ("The machine", _machine),
    "step": ("UNet step", _timed),
    "step96": ("UNet step at 768x768", _timed),
    "sdxl": ("SDXL", _timed),
    "decode": ("VAE decode", _timed),
    "decode1024": ("VAE decode at 1024x1024", _timed),
    "text": ("Text", timings),
    "load": ("Until the first step", _load),
    "whole": ("Whole picture", _whole),
    "memory": ("Memory", _peaks),
}


def sections(records: Records) -> dict[str, list[str]]:
    """The tables of every part that was measured, by its heading."""
    return {title: make(name, records[name]) for name, (title, make) in SECTIONS.items() if name in records}


@dataclass(frozen=True)
class Said:
    """What stands between the marks. about: the machine. made: part → when it was measured, and the best of how many rounds.
    values: name and opponent of a figure → its number. sections: by heading, with it."""

    about: str = ""
    made: dict[str, str] = field(default_factory=dict)
    values: dict[tuple[str, str], float] = field(default_factory=dict)
    sections: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, between: str) -> Said:
        """Of a text that `body` made."""
        first, _, rest = between.partition("\n")
        about, _, made = first.partition(". Measured: ")
        table, *sections = re.split(r"^(?=### )", rest, flags=re.MULTILINE)
        values = {}
        for line in [line for line in table.splitlines() if line.startswith("| ")][2:]:
            name, against, value, *_ = (cell.strip() for cell in line.strip("| ").split(" | "))
            if found := re.match(r"[\d.]+", value):
                values[name, against] = float(found[0])
        return cls(
            about.removesuffix("."),
            dict(re.findall(r"(\w+) (\d{4}-\d\d-\d\d(?:, best of \d+)?)", made)),
            values,
            {section.partition("\n")[0].removeprefix("### "): section.rstrip("\n") + "\n" for section in sections},
        )


def named(machine: Mapping[str, object]) -> str:
    """A machine in words."""
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in machine.items() if value is not None)


def body(machine: Mapping[str, object], records: Records, before: str = "") -> str:
    """All that stands between the marks. before: what stood there; of the same machine its parts stay that were not measured
    again."""
    about, said = named(machine), Said.of(before)
    if said.about != about:
        said = Said()
    shown = []
    for figure in figures(records):
        old = None if figure.part in records else said.values.get((figure.name, figure.against))
        shown.append(figure if old is None else replace(figure, value=old))
    made = said.made | {part: _made(record) for part, record in records.items() if "when" in record}
    list_ = "; ".join(f"{part} {made[part]}" for part in SECTIONS if part in made)
    new = sections(records)
    texts = ["\n".join([f"### {title}", "", *lines]) for title, lines in new.items()]
    by_title = said.sections | dict(zip(new, texts, strict=True))
    kept = [by_title[title].rstrip("\n") + "\n" for title, _ in SECTIONS.values() if title in by_title]
    first = f"{about}. Measured: {list_}." if list_ else f"{about}."
    return "\n".join([first, "", *_goal(shown), "", *kept]).rstrip("\n") + "\n"


def _made(record: Record) -> str:
    """The day, and how often each candidate ran, the best of which counts."""
    seconds = record.get("seconds")
    best = f", best of {len(next(iter(seconds.values())))}" if seconds else ""
    return f"{str(record['when'])[:10]}{best}"


def marked(text: str) -> tuple[str, str, str]:
    """A document: before its marks, between them, after. Raises ValueError where it has not both, once each and in order."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"the document needs the lines {BEGIN.strip()} and {END}, once each and in that order")
    before, _, rest = text.partition(BEGIN)
    between, _, after = rest.partition(END)
    return before + BEGIN, between, END + after

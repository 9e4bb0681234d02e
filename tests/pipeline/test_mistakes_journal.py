"""Deliberate mistakes in the journal: each is made in a copy of the package, and a short check must notice it."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import avila_diffusion.errors

SOURCE = Path(avila_diffusion.errors.__file__).parent
NUMBERS = count()
MISTAKES = [
    # file, what stands there, what is put instead
    ("records.py", "own = hashlib.sha256(seal + head + text)", "own = hashlib.sha256(head + text)"),
    ("records.py", "        own.update(chunk)\n", ""),
    ("records.py", "        if end == size:\n            return None\n", ""),
    ("records.py", "    if end > size:\n        return None\n", ""),
    ("journal.py", "stream.truncate(journal._end)", "stream.truncate(0)"),
    ("journal.py", "call.number >= len(recorded)", "call.number > len(recorded)"),
    ("journal.py", "record = recorded[call.number]", "record = recorded[-1]"),
    ("journal.py", "{call.step} {call.want_uncond}", "{call.want_uncond}"),
    ("journal.py", "{call.step} {call.want_uncond}", "{call.step}"),
    ("journal.py", 'struct.pack("<d", call.sigma)', 'struct.pack("<f", call.sigma)'),
    ("journal.py", "asked + data).hexdigest()", "asked).hexdigest()"),
    ("journal.py", "        elif read_data(self._stream, known, self.path) != data:", "        elif False:"),
    ("journal.py", "if step >= at), None)", "if step > at), None)"),
    ("journal.py", "        self._stages, self._files = {}, {}\n\n    def _raw", "\n    def _raw"),
    ("journal_file.py", "fcntl.LOCK_EX | fcntl.LOCK_NB", "fcntl.LOCK_SH | fcntl.LOCK_NB"),
    ("journal.py", "return Denoised(x0.to(call.x.device), unguided)", "return Denoised(x0.to(call.x.device))"),
    ("ledger.py", "image = self.first + index\n\n        def", "image = index\n\n        def"),
    ("ledger.py", "self.journal.keep(self.first + index, stage, tensor)", "self.journal.keep(index, stage, tensor)"),
    ("ledger.py", "call.step < self.branch.at", "call.step > self.branch.at"),
    ("branch.py", "replace(call, step=call.step + at)", "call"),
    ("branch.py", "while call.step < at:", "while call.step <= at:"),
]


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[Callable[[str, str, str], SimpleNamespace]]:
    """Makes a copy of the package under another name, with one text replaced, and imports what the check needs."""
    name = f"mistaken_journal_{next(NUMBERS)}"

    def make(file: str, old: str, new: str) -> SimpleNamespace:
        shutil.copytree(SOURCE, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "data"))
        path = tmp_path / name / "pipeline" / file
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {file}"
        path.write_text(text.replace(old, new), encoding="utf-8")
        rooms = ("journal", "ledger", "branch")
        modules = {room: importlib.import_module(f"{name}.pipeline.{room}") for room in rooms}
        return SimpleNamespace(**modules, guidance=importlib.import_module(f"{name}.sampling.guidance"))

    sys.path.insert(0, str(tmp_path))
    try:
        yield make
    finally:
        sys.path.remove(str(tmp_path))
        for module in [module for module in sys.modules if module.partition(".")[0] == name]:
            del sys.modules[module]


def check(rooms: SimpleNamespace, folder: Path) -> None:
    """Two pictures of three calls: recorded, cut, gone on with, looked at otherwise, branched."""
    request = {"prompt": "a cat", "steps": 3, "seed": 1, "batch": 2, "width": 64, "height": 64}
    journal_of, ledger_of = rooms.journal.Journal, rooms.ledger.Ledger
    calls = [
        rooms.guidance.Call(torch.full((1, 4, 2, 2), 1.0 + step), 3.1 - step, step, step == 1, step)
        for step in range(3)
    ]
    made: list[int] = []

    def denoise(call: Any) -> Any:
        made.append(call.number)
        return rooms.guidance.Denoised(call.x * (2 + call.number), call.x * 7)

    def run(ledger: Any) -> None:
        for index in range(2 - ledger.first):
            answer = ledger.recorded(denoise, index)
            for call in calls:
                answered = answer(call)
                assert torch.equal(answered.x0, call.x * (2 + call.number))
                assert not call.want_uncond or torch.equal(answered.uncond, call.x * 7)
            ledger.keep(index, "latent", torch.full((1, 4, 2, 2), float(index)))

    path = folder / "whole"
    with journal_of.create(path, {"request": request}) as journal:
        header = path.stat().st_size
        run(ledger_of(journal))
        assert made == [0, 1, 2] * 2
        with pytest.raises(Exception, match="another run"):
            journal_of.reopen(path).close()
    data, cut = path.read_bytes(), folder / "cut"
    for end in (header + 20, len(data) - 1, *range(header, len(data), 97)):
        cut.write_bytes(data[:end])
        with journal_of.reopen(cut) as journal:
            there, made[:] = journal.calls, []
            run(ledger_of(journal))
        assert len(made) == 6 - there
        assert cut.read_bytes() == data
    notice_damage(journal_of, data, cut)
    notice_questions(rooms, path, calls)
    notice_branches(rooms, path, calls)


def notice_damage(journal_of: Any, data: bytes, cut: Path) -> None:
    """A last record whose content is wrong is torn; the same one before another is refused; so is a foreign one."""
    cut.write_bytes(data[:-40] + b"\xee" + data[-39:])
    with journal_of.read(cut) as journal:
        assert journal.torn > 0
    place = data.index(b'"stage"') + 240  # in the data of the first picture's latent
    cut.write_bytes(data[:place] + b"\xee" + data[place + 1 :])
    with pytest.raises(Exception, match="is damaged"):
        journal_of.read(cut).close()
    at = data.index(b'{"kind"') - 16
    other = data[:at] + data[at:].replace(b"a cat", b"a dog", 1)
    cut.write_bytes(other)
    with pytest.raises(Exception, match="is damaged"):
        journal_of.read(cut).close()
    with journal_of.create(cut.with_name("other"), {"request": {}}) as journal:
        header = cut.with_name("other").read_bytes()
    with journal_of.read(cut.with_name("whole")) as journal:
        first = min(record.offset - 16 for record in journal._calls[0])
        text = data.index(b'{"kind": "call"')
    assert first > text
    cut.write_bytes(header + data[text - 16 :])
    with pytest.raises(Exception, match="is damaged"):
        journal_of.read(cut).close()


def notice_questions(rooms: SimpleNamespace, path: Path, calls: list[Any]) -> None:
    """Another question, or another end, is refused; each picture has its own."""
    with rooms.journal.Journal.read(path) as journal:
        call = calls[0]
        for other in (
            replace(call, sigma=call.sigma + 1e-12),
            replace(call, step=1),
            replace(call, want_uncond=True),
            replace(call, x=-call.x),
        ):
            with pytest.raises(Exception, match="asks the model something else"):
                journal.answer(0, other)
        with pytest.raises(Exception, match="is not the one"):
            rooms.ledger.Ledger(journal, 1).keep(0, "latent", torch.zeros(1, 4, 2, 2))
        rooms.ledger.Ledger(journal, 1).keep(0, "latent", torch.ones(1, 4, 2, 2))
        seen: list[int] = []
        with suppress(ZeroDivisionError):
            rooms.ledger.Ledger(journal, 2).recorded(lambda call: seen.append(1 // 0), 0)(calls[0])
            raise AssertionError("the third picture is not recorded")


def notice_branches(rooms: SimpleNamespace, path: Path, calls: list[Any]) -> None:
    """What lies before the border is answered by the journal or not at all, and a new sampler counts on."""
    with rooms.journal.Journal.read(path) as journal:
        journal.cut(2)
        assert journal.calls == 4
        assert not journal.finished(0)
        branch = rooms.branch.Branch(at=2, before=journal.request)
        answer = rooms.ledger.Ledger(None, 0, branch).recorded(lambda call: rooms.guidance.Denoised(call.x), 0)
        with pytest.raises(Exception, match="before the branch"):
            answer(calls[1])
        assert torch.equal(answer(calls[2]).x0, calls[2].x)
    sigmas = torch.tensor([3.1, 2.1, 1.1, 0.0], dtype=torch.float64)

    def run(x: Any, levels: Any) -> Any:
        for step, sigma in enumerate(levels.tolist()[:-1]):
            x = x / 2 + (yield rooms.guidance.Call(x, sigma, step)).x0
        return x

    switched = rooms.branch.switch(run(calls[0].x, sigmas), 1, sigmas, run)
    asked = [next(switched)]
    with suppress(StopIteration):
        while True:
            asked.append(switched.send(rooms.guidance.Denoised(asked[-1].x)))
    assert [(call.step, round(call.sigma, 6)) for call in asked] == [(0, 3.1), (1, 2.1), (2, 1.1)]
    assert [float(call.x[0, 0, 0, 0]) for call in asked] == [1.0, 1.5, 2.25]
    plain = rooms.branch.switch(run(calls[0].x, sigmas), 1, sigmas, lambda x, levels: run(x * 10, levels))
    next(plain)
    assert float(plain.send(rooms.guidance.Denoised(calls[0].x)).x[0, 0, 0, 0]) == 15.0


def test_the_check_passes_on_the_package_as_it_is(
    copy: Callable[[str, str, str], SimpleNamespace], tmp_path: Path
) -> None:
    check(copy("ledger.py", "return made[0]\n", "return made[-1]\n"), tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="one of the mistakes is in what only Unix runs")
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda row: f"{row[0]}: {row[2][:40]!r}")
def test_a_mistake_is_noticed(
    mistake: tuple[str, str, str], copy: Callable[[str, str, str], SimpleNamespace], tmp_path: Path
) -> None:
    rooms = copy(*mistake)
    with pytest.raises(BaseException):  # noqa: B017 (whatever shows it, an assertion or an error)
        check(rooms, tmp_path)

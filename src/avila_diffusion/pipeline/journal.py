"""The journal of a run: what the model answered, call by call, in a file that outlives the process.

A sampler is a generator, so what was sent to it is its whole state: a fresh one that is sent the same answers stands where
the old one stood, to the bit. Every answer is written when it is there; a run that was killed is gone on with by
answering from the file as far as it reaches, and by the model from there on.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import struct
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from functools import cached_property
from io import FileIO
from math import prod
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ..device import DTYPES
from ..errors import JournalProblem, OutputProblem
from ..request import GenerateRequest
from ..sampling.guidance import Call, Denoised
from .branch import Branch
from .journal_file import claim, hold, not_written, open_journal
from .records import BEGINNING, FIRST_SEAL, Record, encode, read_data, scan

FIRST_PASS = "first pass"
"""Name of the stage that the first of two passes ends in."""
SECONDS_UNSYNCED = 2.0
"""What a power cut may cost, at most."""


class Journal:
    """One journal, open. Made by `create`, `reopen` or `read`; a context manager.

    header: what the run is and under which conditions it was begun. torn: bytes that were dropped from the end.
    Only one process has a journal open for writing.
    """

    def __init__(self, path: Path, stream: FileIO, *, writable: bool) -> None:
        self.path, self.writable = path, writable
        self._stream = stream
        found = scan(stream, path)
        self._end, self._seal, self.torn = found.end, found.seal, found.torn
        self.header: dict[str, Any] = found.records[0].text
        self._calls: dict[int, list[Record]] = {}
        self._stages: dict[tuple[int, str], Record] = {}
        self._files: dict[int, tuple[str, bool]] = {}
        for number, record in enumerate(found.records[1:], 2):
            try:
                self._take(record)
            except (KeyError, TypeError, ValueError):
                raise JournalProblem(f"record {number} of {path} is not one of a journal; it cannot be used") from None
        self._guard, self._synced, self._timer = threading.Lock(), time.monotonic(), None

    _timer: threading.Timer | None

    @classmethod
    def create(cls, path: str | Path, header: Mapping[str, Any], *, copied: Journal | None = None) -> Journal:
        """A new journal, with the calls of another one if given. It appears whole; what is there is never replaced, but for
        an empty file, which a killed run leaves. Raises OutputProblem where it cannot be written.
        """
        path = Path(path)
        claimed = claim(path)
        first = {"kind": "run", "run": secrets.token_hex(16), **header}  # the seals of two runs are never alike
        partial = path.with_name(f".avila-{secrets.token_hex(8)}.partial")
        try:
            with partial.open("xb") as stream:
                stream.write(BEGINNING)
                encoded, seal = encode(first, b"", FIRST_SEAL)
                stream.write(encoded)
                for text, data in () if copied is None else copied._raw_calls():
                    encoded, seal = encode(text, data, seal)
                    stream.write(encoded)
                stream.flush()
                os.fsync(stream.fileno())
            if sys.platform == "win32":
                claimed.close()  # what is open is not replaced there
            partial.replace(path)
        except BaseException as error:
            for left in (partial, path):
                with contextlib.suppress(OSError):
                    left.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise not_written(path, error) from None
            raise
        finally:
            claimed.close()
        return cls.reopen(path)

    @classmethod
    def reopen(cls, path: str | Path) -> Journal:
        """A journal to go on with: held for this process, its torn end cut off.

        Raises JournalProblem where it is damaged, no journal, or held by another run.
        """
        path = Path(path)
        stream = open_journal(path, "r+b")
        try:
            hold(stream, path)
            journal = cls(path, stream, writable=True)
            if journal.torn:
                stream.truncate(journal._end)
                journal._sync()
        except BaseException:
            stream.close()
            raise
        return journal

    @classmethod
    def read(cls, path: str | Path) -> Journal:
        """A journal to look into: nothing is written to it, and what its run adds meanwhile is not seen."""
        path = Path(path)
        stream = open_journal(path, "rb")
        try:
            return cls(path, stream, writable=False)
        except BaseException:
            stream.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Sync what is left and let the file go. A second time does nothing."""
        if self._stream.closed:
            return
        if self._timer is not None:
            self._timer.cancel()
        if self.writable:
            with contextlib.suppress(OutputProblem):  # the run itself is not worse for it
                self._sync()
        with self._guard:
            self._stream.close()

    @cached_property
    def request(self) -> GenerateRequest:
        """What was asked for, nothing left open. Raises JournalProblem where this version cannot ask that."""
        return restore_request(self.header.get("request"), self.path)

    @cached_property
    def branch(self) -> Branch | None:
        """Where this run left another one, None where it began with noise."""
        found = self.header.get("branch")
        if found is None:
            return None
        if not isinstance(found, dict) or not isinstance(found.get("at"), int):
            raise JournalProblem(f"{self.path} does not say where it branches; it cannot be used")
        return Branch(at=found["at"], before=restore_request(found.get("before"), self.path))

    @property
    def pictures(self) -> int:
        """Of the whole job."""
        return len(self.request.seeds)

    @property
    def calls(self) -> int:
        """Model calls that are recorded, of all pictures."""
        return sum(map(len, self._calls.values()))

    def finished(self, image: int) -> bool:
        """Whether a picture's sampling came to its end."""
        return (image, "latent") in self._stages

    def steps(self, image: int) -> list[int]:
        """The sampler's step of each recorded call of a picture."""
        return [record.text["step"] for record in self._calls.get(image, [])]

    def answer(self, image: int, call: Call) -> Denoised | None:
        """What the model answered to this call, None where the journal does not reach so far.

        Raises JournalProblem where another question stands there.
        """
        recorded = self._calls.get(image, [])
        if call.number >= len(recorded):
            return None
        record = recorded[call.number]
        if record.text["asked"] != digest_call(call):
            raise JournalProblem(
                f"call {call.number + 1} of picture {image + 1} (step {call.step + 1}, sigma {call.sigma:.6g}) asks the model "
                f"something else than {self.path} recorded there; the journal was made by another version or for other settings"
            )
        data = read_data(self._stream, record, self.path)
        x0, rest = _unpack(record.text["x0"], data, self.path)
        uncond = record.text["uncond"]
        unguided = None if uncond is None else _unpack(uncond, rest, self.path)[0].to(call.x.device)
        return Denoised(x0.to(call.x.device), unguided)

    def add_call(self, image: int, call: Call, denoised: Denoised) -> None:
        """Record an answer; the unguided one where it was asked for."""
        uncond = denoised.uncond if call.want_uncond else None
        packed = [(None, b"") if tensor is None else _pack(tensor) for tensor in (denoised.x0, uncond)]
        text = {
            "kind": "call",
            "image": image,
            "number": call.number,
            "step": call.step,
            "sigma": call.sigma,
            "asked": digest_call(call),
            "x0": packed[0][0],
            "uncond": packed[1][0],
        }
        self._add(text, packed[0][1] + packed[1][1])

    def keep(self, image: int, stage: str, tensor: Tensor) -> None:
        """Record what a stage ended in, such as the "latent". Where that is recorded, it must be the same.

        Raises JournalProblem where it is not.
        """
        described, data = _pack(tensor)
        known = self._stages.get((image, stage))
        if known is None:
            self._add({"kind": "stage", "image": image, "stage": stage, "tensor": described}, data)
        elif read_data(self._stream, known, self.path) != data:
            raise JournalProblem(
                f"the {stage} of picture {image + 1} is not the one that {self.path} recorded; "
                "it was made by another version or for other settings"
            )

    def stage(self, image: int, stage: str) -> Tensor | None:
        """What a stage ended in, as `keep` recorded it; None where it is not recorded."""
        known = self._stages.get((image, stage))
        if known is None:
            return None
        return _unpack(known.text["tensor"], read_data(self._stream, known, self.path), self.path)[0]

    def file(self, image: int) -> tuple[Path, bool] | None:
        """Where a picture is meant to be, and whether it was written there; None where that is open."""
        found = self._files.get(image)
        return None if found is None else (Path(found[0]), found[1])

    def add_file(self, image: int, path: Path, *, written: bool) -> None:
        """Record the place of a picture, before it is written and after that."""
        self._add({"kind": "file", "image": image, "path": str(path.absolute()), "written": written}, b"")

    def cut(self, at: int) -> None:
        """Forget, for this object, all that came at step `at` of the first pass' sampler and after, a second pass among it.
        For journals that are read.

        Raises JournalProblem where a picture's recorded calls do not reach to that border.
        """
        for image in range(self.pictures):
            first = self._stages.get((image, FIRST_PASS))
            if first is not None:  # calls that are recorded behind it are the second pass'
                self._calls[image] = [call for call in self._calls.get(image, []) if call.offset < first.offset]
            finished = first is not None or self.finished(image)
            steps = self.steps(image)
            border = next((number for number, step in enumerate(steps) if step >= at), None)
            last = max(steps, default=-1) + 1
            if finished and at > last:
                raise JournalProblem(f"picture {image + 1} took {last} sampler steps; branch at 0 to {last}, not {at}")
            if at and border is None and not finished:
                raise JournalProblem(
                    f"picture {image + 1} is recorded up to the border of step {max(last - 1, 0)}, not of {at}; "
                    f"go on with `avila resume {self.path}` first, or branch at {max(last - 1, 0)} or before"
                )
            self._calls[image] = self._calls.get(image, [])[:border]
        self._stages, self._files = {}, {}

    def _raw_calls(self) -> Iterable[tuple[dict[str, Any], bytes]]:
        for records in self._calls.values():
            for record in records:
                yield record.text, read_data(self._stream, record, self.path)

    def _take(self, record: Record) -> None:
        """One more record of the file. What this version does not know is passed over."""
        text = record.text
        if text["kind"] == "call":
            calls = self._calls.setdefault(int(text["image"]), [])
            if text["number"] != len(calls) or not isinstance(text["step"], int) or not isinstance(text["asked"], str):
                raise ValueError("a call is missing or said badly")
            held = sum(_size(text[name]) for name in ("x0", "uncond") if text[name] is not None)
            if held != record.size:
                raise ValueError("the data are not those that are described")
            calls.append(record)
        elif text["kind"] == "stage":
            self._stages[int(text["image"]), str(text["stage"])] = record
        elif text["kind"] == "file":
            self._files[int(text["image"])] = str(text["path"]), bool(text["written"])

    def _add(self, text: dict[str, Any], data: bytes) -> None:
        if not self.writable:
            return
        encoded, seal = encode(text, data, self._seal)
        try:
            self._stream.seek(self._end)
            view = memoryview(encoded)
            while view:
                view = view[self._stream.write(view) :]
        except (OSError, ValueError) as error:
            raise not_written(self.path, error) from None
        self._take(Record(text, self._end + len(encoded) - len(data) - len(seal), len(data)))
        self._end, self._seal = self._end + len(encoded), seal
        self._sync_soon()

    def _sync_soon(self) -> None:
        """Now where that is due, else by a timer: the next record may be long in coming."""
        waiting = self._timer
        since = time.monotonic() - self._synced
        if since >= SECONDS_UNSYNCED:
            self._sync()
        elif waiting is None or not waiting.is_alive():
            self._timer = threading.Timer(SECONDS_UNSYNCED - since, self._sync_if_open)
            self._timer.daemon = True
            self._timer.start()

    def _sync_if_open(self) -> None:
        with contextlib.suppress(OutputProblem, ValueError):  # the next record or closing says so
            self._sync()

    def _sync(self) -> None:
        with self._guard:
            if not self._stream.closed:
                try:
                    os.fsync(self._stream.fileno())
                except OSError as error:
                    raise not_written(self.path, error) from None
                self._synced = time.monotonic()


def digest_call(call: Call) -> str:
    """32 hex digits of what a call asks: x to the bit, its level, step and whether the unguided answer is wanted."""
    described, data = _pack(call.x)
    asked = f"{described['dtype']} {described['shape']} {call.step} {call.want_uncond}".encode()
    return hashlib.sha256(struct.pack("<d", call.sigma) + asked + data).hexdigest()[:32]


def digest_tensor(tensor: Tensor) -> str:
    """32 hex digits of a tensor's numbers."""
    return hashlib.sha256(_pack(tensor)[1]).hexdigest()[:32]


def restore_request(values: object, path: Path) -> GenerateRequest:
    """A request as JSON gives it back. Raises JournalProblem where this version cannot ask that."""
    if not isinstance(values, dict):
        raise JournalProblem(f"{path} does not say what was asked for; it cannot be used")
    try:
        request = GenerateRequest.from_dict({name: _with_tuples(value) for name, value in values.items()})
        _ = request.seeds
    except (ValueError, TypeError) as error:
        raise JournalProblem(f"{path} asks for what this version does not know: {error}") from None
    return request


def _with_tuples(value: Any) -> Any:
    return tuple(_with_tuples(item) for item in value) if isinstance(value, list) else value


def _pack(tensor: Tensor) -> tuple[dict[str, Any], bytes]:
    """What describes a tensor, and its numbers. The order in memory is kept: convolutions round by it."""
    by_pixel = tensor.dim() == 4 and not tensor.is_contiguous()
    by_pixel = by_pixel and tensor.is_contiguous(memory_format=torch.channels_last)
    plain = tensor.detach().cpu().contiguous().reshape(-1)
    described = {
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "layout": "channels_last" if by_pixel else "plain",
    }
    return described, plain.view(torch.uint8).numpy().tobytes()


def _size(described: Mapping[str, Any]) -> int:
    """Bytes of a described tensor. Raises KeyError, TypeError or ValueError where it is none."""
    shape = described["shape"]
    if not isinstance(shape, list) or not all(isinstance(side, int) and side > 0 for side in shape):
        raise ValueError("no shape")
    return prod(shape) * DTYPES[described["dtype"]].itemsize


def _unpack(described: Mapping[str, Any], data: bytes, path: Path) -> tuple[Tensor, bytes]:
    """The tensor at the front of data, and what follows it."""
    size = _size(described)
    if size > len(data):
        raise JournalProblem(f"{path} holds less than it describes; it cannot be used")
    flat = torch.frombuffer(bytearray(data[:size]), dtype=DTYPES[described["dtype"]])
    tensor = flat.reshape(described["shape"])
    if described.get("layout") == "channels_last":
        tensor = tensor.contiguous(memory_format=torch.channels_last)
    return tensor, data[size:]

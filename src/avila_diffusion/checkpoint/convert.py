"""`avila convert IN OUT`: a pickled checkpoint becomes a safetensors file, or a safetensors file changes its dtype.

Pickles are read in a child process with bounded memory and time, which may neither start programs nor open
connections nor write any file but its result; it writes the safetensors file itself, one tensor at a time. The child
starts in Python's isolated mode: no module can be slipped in from the current folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .. import errors
from ..errors import AvilaError, FileProblem, OutputProblem, PickleRefused, RequestError
from .header import DTYPES, FLOATS, read_header, shown
from .pickle_tensors import TensorRef
from .pickles import read_pickle
from .report import shorten
from .safetensors import TensorFile, replacing, tensor_bytes, torch_dtype, write_stream
from .signatures import identify
from .state_dict import collect

if TYPE_CHECKING:
    import torch

TARGET_DTYPES = {"f16": "F16", "bf16": "BF16", "f32": "F32"}

# Tables over the training steps, which tell the schedule of a model: a few kilobytes that 16 bits would falsify.
_SCHEDULE = frozenset({
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2", "logvar", "model_ema.decay",
})  # fmt: skip

_CHILD = (
    "import json, sys; job = json.load(sys.stdin); sys.path[:] = job['path']; "
    "from avila_diffusion.checkpoint.convert import serve_child; serve_child(job)"
)
_MAX_REPORTED = 1000
_MAX_GROWTH = 8
_SPARE_MEMORY = 4 * 1024**3
_FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.spawn",
    "os.posix_spawn",
    "os.fork",
    "os.startfile",
    "subprocess.",
    "socket.",
    "pty.",
)


@dataclass(frozen=True)
class ConvertReport:
    """What a conversion did.

    kind: "safetensors", "zip" or "pickle". tensors and size (bytes) of the target; dtypes: how many tensors of each;
    converted: how many changed dtype. dropped: (name, why) of entries that are not in the target. unknown: globals
    that the pickle named and that were not built. notes: lines for the user, such as values that do not fit the new
    dtype.
    """

    source: Path
    target: Path
    kind: str
    tensors: int
    size: int
    dtypes: dict[str, int]
    converted: int
    dropped: tuple[tuple[str, str], ...] = ()
    unknown: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {
            "source": str(self.source),
            "target": str(self.target),
            "dropped": [{"name": name, "reason": why} for name, why in self.dropped],
            "unknown": list(self.unknown),
            "notes": list(self.notes),
        }

    def lines(self) -> list[str]:
        """For people."""
        dtypes = ", ".join(f"{name} {count:,}" for name, count in self.dtypes.items())
        lines = [f"{self.target}: {self.size / 1e9:.2f} GB, {self.tensors:,} tensors ({dtypes})"]
        if self.converted:
            lines.append(f"{self.converted:,} tensors changed their dtype")
        reasons = Counter(why for _, why in self.dropped)
        lines += [f"left out: {count:,} entries: {why}" for why, count in reasons.items()]
        lines += [f"not built: {name}" for name in shorten(self.unknown)]
        return lines + shorten(self.notes)


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    overwrite: bool = False,
    timeout: float | None = None,
) -> ConvertReport:
    """Write the tensors of `source` (pickled or safetensors) to the safetensors file `target`.

    dtype: "f16", "bf16" or "f32" for floating-point tensors (whole numbers and schedule tables keep theirs), None to
    keep all. timeout: seconds that reading a pickle may take; by default two minutes and one second for each 10 MB.

    Names: see `checkpoint.state_dict`. Metadata of a safetensors source is kept. Tied storages are written once per
    name. The target appears complete or not at all. Raises RequestError (unknown dtype, IN is OUT, OUT not named
    .safetensors), OutputProblem (target exists and not `overwrite`, disk full), PickleRefused, HeaderError or
    ModelNotFound (source).
    """
    source, target = Path(source), Path(target)
    _check_call(source, target, dtype, overwrite)
    kind = identify(source)
    wanted = TARGET_DTYPES[dtype] if dtype else None
    with replacing(target) as temporary:
        if kind in ("zip", "pickle"):
            report = _run_child(source, temporary, wanted, timeout)
        else:
            report = _convert_safetensors(source, temporary, wanted)
        read_header(temporary)
    return replace(report, source=source, target=target, kind=kind)


def read_in_child(path: str | os.PathLike[str], *, timeout: float | None = None) -> dict[str, torch.Tensor]:
    """The tensors of a small pickled file (an embedding, a LoRA), read by `convert` in its child process; names as
    there.
    """
    with tempfile.TemporaryDirectory(prefix="avila-") as folder:
        target = Path(folder) / "tensors.safetensors"
        convert(path, target, timeout=timeout)
        with TensorFile(target, mapped=False) as file:
            return {name: file.tensor(name) for name in file.names}


def _check_call(source: Path, target: Path, dtype: str | None, overwrite: bool) -> None:
    if dtype is not None and dtype not in TARGET_DTYPES:
        raise RequestError(f"dtype {dtype!r} is not known; give one of {', '.join(TARGET_DTYPES)}")
    if target.suffix.lower() != ".safetensors":
        raise RequestError(f"{target} must end in .safetensors, so that programs know what it is")
    try:
        target.lstat()
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as problem:  # a name that no file can have, a folder that is a file
        said = problem.strerror if isinstance(problem, OSError) else problem
        raise OutputProblem(f"{shown(str(target))} cannot be written: {said}; choose another OUT") from None
    if target.exists() and source.exists() and target.samefile(source):
        raise RequestError(f"{source} is both source and target; give OUT another name")
    if target.is_dir():
        raise OutputProblem(f"{target} is a folder")
    if target.exists() and not overwrite:
        raise OutputProblem(f"{target} exists already; choose another name or pass --overwrite")
    if not target.parent.is_dir():
        raise OutputProblem(f"the folder {target.parent} does not exist; make it first")


def _convert_safetensors(source: Path, target: Path, wanted: str | None) -> ConvertReport:
    with TensorFile(source) as file:
        entries = file.header.entries
        given = {name: (entry.dtype, entry.shape) for name, entry in entries.items()}
        return _write(target, given, wanted, file.raw, file.tensor, file.header.metadata)


def _convert_pickle(source: Path, target: Path, wanted: str | None) -> ConvertReport:
    """The child's work."""
    pickled = read_pickle(source)
    try:
        state = collect(pickled.root)
        limit = _MAX_GROWTH * source.stat().st_size + 2**26
        if sum(tensor.byte_count for tensor in state.tensors.values()) > limit:
            raise PickleRefused("names the same bytes again and again; its tensors would be far larger than the file")
    except FileProblem as problem:
        raise type(problem)(f"{source} {problem}") from None
    tensors: dict[str, TensorRef] = {}
    for name, tensor in state.tensors.items():
        if tensor.dtype in DTYPES:
            tensors[name] = tensor
        else:
            state.dropped[name] = f"a tensor of {tensor.dtype}, which safetensors cannot hold"
    given = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    report = _write(
        target,
        given,
        wanted,
        lambda name: tensors[name].row_major(),
        lambda name: tensors[name].tensor(),
        {"format": "pt"},
    )
    dropped = [(shown(name)[1:-1], why) for name, why in state.dropped.items()]
    if len(dropped) > _MAX_REPORTED:
        dropped[_MAX_REPORTED:] = [("…", f"and {len(dropped) - _MAX_REPORTED:,} more")]
    unknown = tuple(shown(name)[1:-1] for name in pickled.unknown[:_MAX_REPORTED])
    return replace(report, dropped=tuple(dropped), unknown=unknown)


def _write(
    target: Path,
    given: dict[str, tuple[str, tuple[int, ...]]],
    wanted: str | None,
    raw: Callable[[str], memoryview],
    tensor: Callable[[str], torch.Tensor],
    metadata: dict[str, str],
) -> ConvertReport:
    plan = {name: (_new_dtype(name, dtype, wanted), shape) for name, (dtype, shape) in given.items()}
    notes: list[str] = []

    def payload(name: str) -> memoryview:
        if plan[name][0] == given[name][0]:
            return raw(name)
        return tensor_bytes(_cast(name, tensor(name), torch_dtype(plan[name][0]), notes))

    size = write_stream(target, plan, payload, metadata)
    return ConvertReport(
        source=target,
        target=target,
        kind="",
        tensors=len(plan),
        size=size,
        dtypes=dict(Counter(dtype for dtype, _ in plan.values())),
        converted=sum(plan[name][0] != given[name][0] for name in plan),
        notes=tuple(notes),
    )


def _new_dtype(name: str, dtype: str, wanted: str | None) -> str:
    if wanted is None or dtype not in FLOATS or name in _SCHEDULE:
        return dtype
    return wanted


def _cast(name: str, tensor: torch.Tensor, dtype: torch.dtype, notes: list[str]) -> torch.Tensor:
    import torch

    cast = tensor.to(dtype)
    if torch.finfo(dtype).max >= torch.finfo(tensor.dtype).max:
        return cast
    lost = tensor.isfinite() & ~cast.isfinite()
    if count := int(lost.sum()):
        largest = tensor[lost].abs().max().item()
        notes.append(f"{shown(name)[1:-1]}: {count:,} values up to {largest:.6g} became infinite in {dtype}")
    return cast


def _run_child(source: Path, target: Path, wanted: str | None, timeout: float | None) -> ConvertReport:
    if not sys.executable:
        raise FileProblem(f"{source} is pickled, and there is no Python program here to read it with")
    package_root = str(Path(errors.__file__).resolve().parents[1])
    folders = [folder for folder in sys.path if Path(folder).is_absolute()]
    job = {
        "path": folders if package_root in folders else [*folders, package_root],
        "source": str(source.absolute()),
        "target": str(target.absolute()),
        "dtype": wanted,
    }
    seconds = 120 + source.stat().st_size / 10e6 if timeout is None else timeout
    try:
        # The job goes through stdin as ASCII: paths with blanks, quotes or any script need no quoting anywhere.
        done = subprocess.run(
            [sys.executable, "-I", "-X", "utf8", "-c", _CHILD],
            input=json.dumps(job).encode("ascii"),
            capture_output=True,
            timeout=seconds,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise PickleRefused(f"{source} was not read within {seconds:.0f} seconds; it is damaged or hostile") from None
    except OSError as problem:
        raise FileProblem(f"{source} cannot be read in a process of its own: {problem}") from None
    return _understand(source, done)


def _understand(source: Path, done: subprocess.CompletedProcess[bytes]) -> ConvertReport:
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        last = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2][:200]
        ended = f"signal {-done.returncode}" if done.returncode < 0 else f"code {done.returncode}"
        raise FileProblem(f"{source} ended the process that read it ({ended}{': ' if last else ''}{last})") from None
    if "error" in answer:
        kind = getattr(errors, answer["error"], FileProblem)
        raise kind(answer["message"])
    for field in ("dropped", "unknown", "notes"):
        answer[field] = tuple(tuple(item) if isinstance(item, list) else item for item in answer[field])
    return ConvertReport(**answer)


def serve_child(job: dict[str, Any]) -> None:
    """The child's main function: does the job that stands in stdin and answers with one JSON object on stdout."""
    source, target = Path(job["source"]), Path(job["target"])
    answer: dict[str, Any]
    try:
        import numpy as np  # noqa: F401  (here, before files and memory are confined)

        if job["dtype"]:
            import torch  # noqa: F401
        confine(source, target)
        answer = asdict(_convert_pickle(source, target, job["dtype"]))
        answer |= {"source": "", "target": ""}
    except AvilaError as problem:
        answer = {"error": type(problem).__name__, "message": str(problem)}
    except MemoryError:
        answer = {"error": "FileProblem", "message": f"{source} asks for more memory than its size explains"}
    except OSError as problem:
        answer = {"error": "OutputProblem", "message": f"{target.parent}: {problem.strerror or problem}"}
    sys.stdout.write(json.dumps(answer))


def confine(source: Path, target: Path) -> None:
    """Bound this process for good: memory (where the system can), no programs, no connections, no writing but to
    `target`.
    """
    with suppress(ImportError, OSError, ValueError, AttributeError):
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        allowed = pages * resource.getpagesize() + source.stat().st_size + _SPARE_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
    result = str(target)
    sys.dont_write_bytecode = True

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(_FORBIDDEN):
            _refuse(source, event)
        if event == "open":
            path, mode, flags = arguments
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
            if writes and os.fsdecode(path if isinstance(path, str | bytes) else str(path)) != result:
                _refuse(source, f"{event} for writing ({mode or flags})")

    sys.addaudithook(watch)


def _refuse(source: Path, event: str) -> NoReturn:
    raise PickleRefused(f"{source} led to {event}, which reading a checkpoint never needs")

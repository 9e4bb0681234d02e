"""Facts about this machine that neither Python nor torch tells: processor, memory, graphics cards. No torch.

Linux is read from /proc and /sys, macOS from sysctl and vm_stat, Windows from the registry and kernel32. A fact that
cannot be had is None or empty, never an error.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SECONDS_TO_ANSWER = 10


@dataclass(frozen=True)
class Memory:
    """Main memory in bytes: all of it, and what a program could have now."""

    total: int
    available: int


@dataclass(frozen=True)
class GraphicsCard:
    """A graphics card as its driver names it.

    maker: "nvidia", "amd" or "apple". cuda: newest CUDA version the driver runs. capability: of an NVIDIA card.
    """

    maker: str
    name: str
    cuda: tuple[int, int] | None = None
    capability: tuple[int, int] | None = None


def cache_folder() -> Path:
    """Where this user's caches are kept: `AVILA_CACHE`, else the place the operating system has for them.

    Raises RuntimeError where the user has no home folder.
    """
    if chosen := os.environ.get("AVILA_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "avila" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "avila"
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (shared if shared.is_absolute() else Path.home() / ".cache") / "avila"


def data_folder() -> Path:
    """Where this user's programs keep what must not get lost. Raises RuntimeError where the user has no home folder."""
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return Path(local) if local else Path.home() / "AppData" / "Local"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support"
    shared = Path(os.environ.get("XDG_DATA_HOME", ""))
    return shared if shared.is_absolute() else Path.home() / ".local" / "share"


def processor_name() -> str:
    """The processor's name as its maker sells it."""
    if sys.platform == "win32":
        import winreg

        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"HARDWARE\DESCRIPTION\System\CentralProcessor\0") as key:
            return str(winreg.QueryValueEx(key, "ProcessorNameString")[0]).strip()
    if sys.platform == "darwin":
        return _answer("sysctl", "-n", "machdep.cpu.brand_string").strip() or platform.processor()
    match = re.search(r"^model name\s*:\s*(.+)$", _text("/proc/cpuinfo"), re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine()


def usable_cores() -> int:
    """Logical cores this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def physical_cores() -> int | None:
    """Cores as silicon: two hardware threads of one core count once."""
    if sys.platform == "win32":
        return count_core_records(_windows_core_records()) or None
    if sys.platform == "darwin":
        said = _answer("sysctl", "-n", "hw.physicalcpu").strip()
        return int(said) if said.isdigit() else None
    return count_cpuinfo_cores(_text("/proc/cpuinfo"))


def count_cpuinfo_cores(text: str) -> int | None:
    """Distinct (socket, core) pairs of a /proc/cpuinfo; None where it names none, as on ARM."""
    cores = set()
    for block in text.split("\n\n"):
        fields = dict(re.findall(r"^(physical id|core id)\s*:\s*(\d+)$", block, re.MULTILINE))
        if "core id" in fields:
            cores.add((fields.get("physical id", "0"), fields["core id"]))
    return len(cores) or None


def count_core_records(buffer: bytes) -> int:
    """Records of kind RelationProcessorCore (0) in what Windows' GetLogicalProcessorInformationEx gives."""
    count = position = 0
    while position + 8 <= len(buffer):
        relation, size = struct.unpack_from("<II", buffer, position)
        count += relation == 0
        position += max(size, 8)
    return count


def memory() -> Memory | None:
    """Main memory; within a container's limit where there is one."""
    if sys.platform == "win32":
        return _windows_memory()
    if sys.platform == "darwin":
        total = _answer("sysctl", "-n", "hw.memsize").strip()
        return parse_vm_stat(_answer("vm_stat"), int(total)) if total.isdigit() else None
    found = parse_meminfo(_text("/proc/meminfo"))
    limit = _text("/sys/fs/cgroup/memory.max").strip()
    used = _text("/sys/fs/cgroup/memory.current").strip()
    if found is not None and limit.isdigit() and used.isdigit():
        left = max(0, int(limit) - int(used))
        return Memory(min(found.total, int(limit)), min(found.available, left))
    return found


def parse_meminfo(text: str) -> Memory | None:
    """Read /proc/meminfo."""
    fields = {name: int(number) * 1024 for name, number in re.findall(r"^(\w+):\s*(\d+) kB$", text, re.MULTILINE)}
    if "MemTotal" not in fields:
        return None
    return Memory(fields["MemTotal"], fields.get("MemAvailable", fields.get("MemFree", 0)))


def parse_vm_stat(text: str, total: int) -> Memory:
    """Read macOS' vm_stat: free, inactive and purgeable pages can be had."""
    size = re.search(r"page size of (\d+) bytes", text)
    pages = dict(re.findall(r"^Pages (free|inactive|purgeable):\s*(\d+)\.$", text, re.MULTILINE))
    return Memory(total, sum(map(int, pages.values())) * (int(size[1]) if size else 4096))


def graphics_cards() -> list[GraphicsCard]:
    """The cards that a driver shows, whether or not the installed torch can use them."""
    cards = _nvidia_cards() + _amd_cards()
    if sys.platform == "darwin" and (platform.machine() == "arm64" or runs_translated()):
        cards.append(GraphicsCard("apple", "Apple silicon"))
    return cards


def runs_translated() -> bool:
    """An Intel Python on Apple silicon: slow, and without the graphics card."""
    return sys.platform == "darwin" and _answer("sysctl", "-n", "sysctl.proc_translated").strip() == "1"


def _nvidia_cards() -> list[GraphicsCard]:
    program = shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path="/usr/lib/wsl/lib")
    if program is None:
        loaded = Path("/proc/driver/nvidia/version").exists()
        return [GraphicsCard("nvidia", "NVIDIA driver without nvidia-smi")] if loaded else []
    listed = _answer(program, "--query-gpu=name,compute_cap", "--format=csv,noheader")
    return parse_nvidia_smi(listed, _answer(program))


def parse_nvidia_smi(listed: str, overview: str) -> list[GraphicsCard]:
    """Read the lines "name, capability" and the overview that names the driver's newest CUDA version."""
    match = re.search(r"CUDA Version:\s*(\d+)\.(\d+)", overview)
    cuda = (int(match[1]), int(match[2])) if match else None
    cards = []
    for line in listed.splitlines():
        name, _, capability = line.rpartition(",")
        numbers = re.fullmatch(r"\s*(\d+)\.(\d+)\s*", capability)
        if numbers:
            cards.append(GraphicsCard("nvidia", name.strip(), cuda, (int(numbers[1]), int(numbers[2]))))
    return cards


def _amd_cards() -> list[GraphicsCard]:
    """Linux: a node of the kernel's compute driver is a graphics card where its gpu_id is not 0."""
    nodes = Path("/sys/class/kfd/kfd/topology/nodes")
    return [
        GraphicsCard("amd", _text(str(node / "name")).strip() or "AMD graphics card")
        for node in (sorted(nodes.iterdir()) if nodes.is_dir() else ())
        if _text(str(node / "gpu_id")).strip() not in ("", "0")
    ]


def _windows_memory() -> Memory | None:
    import ctypes

    kernel32 = getattr(ctypes, "WinDLL")("kernel32")  # noqa: B009 - absent from ctypes' types elsewhere

    class Status(ctypes.Structure):
        """MEMORYSTATUSEX of the Windows API."""

        _fields_ = (
            ("dwLength", ctypes.c_uint32),
            ("dwMemoryLoad", ctypes.c_uint32),
            ("ullTotalPhys", ctypes.c_uint64),
            ("ullAvailPhys", ctypes.c_uint64),
            ("others", ctypes.c_uint64 * 5),
        )

    status = Status(dwLength=ctypes.sizeof(Status))
    if not kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None
    return Memory(int(status.ullTotalPhys), int(status.ullAvailPhys))


def _windows_core_records() -> bytes:
    import ctypes

    kernel32 = getattr(ctypes, "WinDLL")("kernel32")  # noqa: B009 - absent from ctypes' types elsewhere
    size = ctypes.c_uint32(0)
    kernel32.GetLogicalProcessorInformationEx(0, None, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    done = kernel32.GetLogicalProcessorInformationEx(0, buffer, ctypes.byref(size))
    return buffer.raw[: size.value] if done else b""


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _answer(*command: str) -> str:
    """What a program says; nothing where it is missing, fails or does not answer in time."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=SECONDS_TO_ANSWER, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode("utf-8", "replace")

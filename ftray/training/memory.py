"""How much memory there is, and how much of it a piece of work takes at its peak, in bytes."""

from __future__ import annotations

from pathlib import Path

import torch

from ftray.errors import ConfigError

__all__ = ["CpuMemory", "GpuMemory", "Memory", "memory_of"]

STATUS = Path("/proc/self/status")
RESET_PEAK = Path("/proc/self/clear_refs")
LIMITS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    (
        "/sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)
"""Where a container has its limit, what it uses of it, and the entry of `memory.stat` with what of
that are copies of files, which give way: cgroups of version 2 and 1."""


class CpuMemory:
    """The memory of this machine, or of its container, and of this process."""

    share = 0.5
    """What of the free memory a run may take: other programs need some, and so does evaluation."""
    where = "memory"

    def free(self) -> int:
        """Bytes that can still be had."""
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = [_kilobytes(line) for line in lines if line.startswith("MemAvailable:")]
        for folder, limit, used, files in LIMITS:
            try:
                most = Path(folder, limit).read_text().strip()
                if most != "max":
                    taken = int(Path(folder, used).read_text()) - _entry(Path(folder), files)
                    found.append(int(most) - taken)
            except (OSError, ValueError):
                continue
        return max(min(found), 0)

    def now(self) -> int:
        """Bytes that this process holds."""
        return self._status("VmRSS:")

    def start(self) -> None:
        """Begin to look for the peak."""
        RESET_PEAK.write_text("5")

    def peak(self) -> int:
        """The most bytes that this process held since then."""
        return self._status("VmHWM:")

    def _status(self, name: str) -> int:
        return next(_kilobytes(x) for x in STATUS.read_text().splitlines() if x.startswith(name))


def _entry(folder: Path, name: str) -> int:
    """Bytes, by an entry of a container's `memory.stat`; 0 if there is none."""
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.split()[:1] == [name]), 0)


def _kilobytes(line: str) -> int:
    return int(line.split()[1]) * 1024


class GpuMemory:
    """The memory of a GPU."""

    share = 0.85
    """Less than all: what is freed in pieces cannot always be used again."""
    where = "GPU memory"

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def free(self) -> int:
        """Bytes that can still be had, with what torch keeps of what was freed."""
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(self._device)[0])

    def now(self) -> int:
        """Bytes that tensors of this process hold."""
        return int(torch.cuda.memory_allocated(self._device))

    def start(self) -> None:
        """Begin to look for the peak."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> int:
        """The most bytes that tensors held since then."""
        torch.cuda.synchronize(self._device)
        return int(torch.cuda.max_memory_allocated(self._device))


Memory = CpuMemory | GpuMemory


def memory_of(device: torch.device) -> Memory:
    """The memory that training on a device takes.

    Raises:
        ConfigError: where it cannot be measured.
    """
    if device.type == "cuda":
        return GpuMemory(device)
    memory = CpuMemory()
    try:
        memory.start()
        memory.peak()
        memory.free()
    except (OSError, StopIteration, ValueError) as error:
        raise ConfigError(
            f"batch_size = 'auto': the memory of a process cannot be measured here ({error}), only "
            "on Linux: give a number"
        ) from None
    return memory

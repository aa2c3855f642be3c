"""How much memory there is: of the machine, and of the container."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftray.training import memory

LIMIT, USED, FILES = 3_000_000, 2_500_000, 1_500_000
NAMES = [names[1:] for names in memory.LIMITS]


def container(folder: Path, names: tuple[str, ...], *, limit: str = str(LIMIT)) -> None:
    """The files in which the kernel tells of a container."""
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{USED}\n")
    (folder / "memory.stat").write_text(
        f"file {2 * FILES}\nactive_file {FILES}\n{names[2]} {FILES}\nslab 7\n"
    )


@pytest.mark.parametrize("names", NAMES)
def test_copies_of_files_give_way(
    names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "LIMITS", ((str(tmp_path), *names),))
    machine = memory.CpuMemory().free()
    assert machine > LIMIT
    container(tmp_path, names)
    assert memory.CpuMemory().free() == LIMIT - USED + FILES
    (tmp_path / "memory.stat").unlink()
    assert memory.CpuMemory().free() == LIMIT - USED
    container(tmp_path, names, limit="max")
    assert memory.CpuMemory().free() > LIMIT

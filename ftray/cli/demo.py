"""`ftray demo`."""

from __future__ import annotations

from rich.console import Console

from ftray.errors import ConfigError

__all__ = ["run"]


def run(ask: str | None, num_workers: str, epochs: int, seed: int, storage_path: str) -> None:
    """Train the demo, or ask its model."""
    from ftray.demo.fit import answer, run_demo

    console = Console(highlight=False)
    if ask is not None:
        answer(console, ask, storage_path)
        return
    if num_workers != "auto" and not num_workers.isdigit():
        raise ConfigError(f"--num-workers {num_workers}: a number, or auto")
    workers = num_workers if num_workers == "auto" else int(num_workers)
    run_demo(console, num_workers=workers, epochs=epochs, seed=seed, storage_path=storage_path)

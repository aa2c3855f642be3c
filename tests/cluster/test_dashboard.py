"""The address of the Ray dashboard is told where there is one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import ftray.cluster.connect as connect
import ftray.cluster.trainer as trainer


class BeforeWorkers(Exception):
    """Enough is known."""


@pytest.mark.parametrize(
    ("url", "lines"),
    [("127.0.0.1:8265", ["Ray dashboard: http://127.0.0.1:8265"]), ("", []), (None, [])],
)
def test_a_fit_on_ray_names_the_dashboard(
    monkeypatch: pytest.MonkeyPatch, url: str | None, lines: list[str]
) -> None:
    def stop() -> None:
        raise BeforeWorkers

    said: list[str] = []
    monkeypatch.setattr("ray._private.worker.get_dashboard_url", lambda: url)
    monkeypatch.setattr(connect.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(trainer, "place", lambda config, overlapped: None)
    monkeypatch.setattr(trainer, "open_mailbox", stop)
    with pytest.raises(BeforeWorkers):
        trainer.fit_on_ray(
            SimpleNamespace(config=None, evaluations=()), SimpleNamespace(say=said.append)
        )
    assert said == lines

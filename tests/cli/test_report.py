"""`ftray report`: where a run's page is."""

from __future__ import annotations

import json
from pathlib import Path

from ftray.record.storage import Storage
from tests.handmade import ended, record, started


def test_report_prints_the_place_of_the_page(cli, folder: Path) -> None:
    record(Storage("runs/default/one"), started(), ended(0))
    page = folder / "runs" / "default" / "one" / "report.html"
    assert cli("report", "one") == (done := cli("report", "one"))
    assert (done.code, done.out, done.err) == (0, f"{page}\n", "")
    assert page.read_text().startswith("<!DOCTYPE html>")
    answer = json.loads(cli("report", "one", "--json").out)
    assert answer == {"name": "one", "status": "FINISHED", "report": str(page)}


def test_report_of_an_unknown_run_names_the_nearest(cli, folder: Path) -> None:
    record(Storage("runs/default/one"), ended(0))
    done = cli("report", "ome")
    assert done.code == 2 and "one" in done.err and "Traceback" not in done.err

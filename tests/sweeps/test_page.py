"""The page of a sweep: whole and safe, whatever the sweep was; its figures are of its record."""

from __future__ import annotations

import json
import math
import os
import platform
import random
import re
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

from ftray.errors import StorageError
from ftray.record.storage import Storage
from ftray.sweeps.config import validated_sweep
from ftray.sweeps.figures import Scale, curves_picture, parallel_picture
from ftray.sweeps.page import sweep_recipe, write_sweep_report
from ftray.sweeps.record import SweepState, Trial, read_state
from ftray.sweeps.space import parse_space
from tests.report.browser import BROWSER, visit
from tests.report.pages import ATTACK, CHINESE
from tests.report.test_browser import ASK
from tests.report.test_html import Page

METRIC = "average_precision"
SPACE: dict[str, Any] = {
    "learning_rate": {"loguniform": [1e-5, 1e-1]},
    "epochs": {"randint": [1, 11]},
    "loss": {"choice": ["TripletMarginLoss", "SupConLoss"]},
    "loss_options.margin": {"uniform": [0.0, 1.0], "if": {"loss": "TripletMarginLoss"}},
}
SECTIONS = ("Trials", "Figures", "Run it again", "Environment")
Made = tuple[SweepState, dict[str, Any]]


def trial(number: int, scores: list[float], outcome: Any = "finished", **more: Any) -> Trial:
    """A trial whose metric has these values, one for each epoch, and which holds the last."""
    margin = {"loss_options.margin": (number % 5) / 4} if number % 2 == 0 else {}
    values = {
        "learning_rate": 10.0 ** -(1 + number % 5),
        "epochs": 1 + number % 10,
        "loss": "TripletMarginLoss" if margin else "SupConLoss",
        **margin,
    }
    epochs = [{"epoch": at, METRIC: value} for at, value in enumerate(scores, start=1)]
    given = {"values": values, "score": scores[-1] if scores else None, "epochs": epochs, **more}
    return Trial(number=number, outcome=outcome, **given)


def state(*trials: Trial, status: str = "FINISHED", **more: Any) -> SweepState:
    over = {} if status == "STARTED" else {"ended_s": time.time()}
    where = {"pid": os.getpid(), "host": platform.node(), "seen_s": time.time()}
    given = {"metric": METRIC, "mode": "max", "started_s": time.time() - 75, **where, **over}
    return SweepState(status=status, trials=list(trials), **{**given, **more})


def config(**more: Any) -> dict[str, Any]:
    fit = {"model": "convnet", "train_data": "digits", "num_workers": 0}
    given = {"fit": fit, "space": SPACE, "metric": METRIC, "scheduler": "asha", "num_samples": 20}
    return {**given, **more}


def finished() -> Made:
    why = "AsyncHyperBandScheduler: others are better at epoch 1"
    return state(
        trial(0, [0.2, 0.3, 0.5]),
        trial(1, [0.1], "stopped", reason=why),
        trial(2, [0.4, 0.6, 0.8]),
        trial(3, [0.3, 0.2], "stopped", reason=why),
    ), config()


def hostile() -> Made:
    values = {"learning_rate": 0.1, "loss": ATTACK, f"loss_options.{ATTACK}": CHINESE}
    first = trial(0, [0.5], values=values, reason=ATTACK)
    second = trial(1, [], "failed", values=values, reason=f"{ATTACK} {'long ' * 2000}")
    space = {name: {"choice": [value, 1]} for name, value in values.items()}
    fit = {"model": ATTACK, "train_data": ATTACK}
    return state(first, second, details=ATTACK), config(space=space, fit=fit)


def failed_one() -> Made:
    return state(
        trial(0, [0.2, 0.3]), trial(1, [], "failed", reason="the loss is nan at step 3")
    ), config()


def all_failed() -> Made:
    trials = [trial(n, [], "failed", reason=f"no memory in {n}") for n in range(30)]
    return state(
        *trials, status="FAILED", details="no trial came to an end: no memory in 0"
    ), config()


def no_trial_yet() -> Made:
    return state(status="STARTED"), config()


def running() -> Made:
    waiting = trial(2, [], "waiting")
    return state(trial(0, [0.4]), trial(1, [0.2], "running"), waiting, status="STARTED"), config()


def stopped() -> Made:
    cut_off = trial(1, [0.2], "interrupted", reason="the sweep was stopped")
    details = "the sweep was stopped"
    return state(trial(0, [0.4]), cut_off, status="STOPPED", details=details), config()


def one_trial() -> Made:
    return state(trial(0, [0.4])), config()


def one_field() -> Made:
    trials = [trial(n, [n / 10], values={"learning_rate": 10.0**-n}) for n in range(1, 5)]
    return state(*trials), config(space={"learning_rate": SPACE["learning_rate"]})


def categories() -> Made:
    lists: dict[str, list[Any]] = {
        "model_options.channels": [[8], [8, 16]],
        "augmentation": [None, "flip", True, 1],
    }
    space = {name: {"grid": values} for name, values in lists.items()}
    points = [{name: values[n % len(values)] for name, values in lists.items()} for n in range(4)]
    trials = [trial(n, [n / 10], values=point) for n, point in enumerate(points)]
    return state(*trials), config(space=space, search="grid", num_samples=10)


def not_a_number() -> Made:
    nan = math.nan
    return state(
        trial(0, [nan, nan]), trial(1, [0.5, nan]), trial(2, [0.1, 0.4]), trial(3, [0.3])
    ), config()


def two_hundred() -> Made:
    source = random.Random(1)
    scores = [[source.random() for _ in range(1 + n % 30)] for n in range(200)]
    ends = ["stopped" if n % 3 else "finished" for n in range(200)]
    return state(*(trial(n, scores[n], ends[n]) for n in range(200))), config()


def pbt() -> Made:
    history = [
        {"epoch": 2, "values": {"learning_rate": 0.05}},
        {"epoch": 4, "values": {"learning_rate": 0.01}},
    ]
    values = {"learning_rate": 0.125}  # beyond its domain: PBT moves values
    trials = [trial(0, [0.1, 0.2, 0.5], values=values, history=history)]
    trials.append(trial(1, [0.2, 0.3, 0.4], values={"learning_rate": 0.02}))
    space = {"learning_rate": SPACE["learning_rate"]}
    return state(*trials), config(scheduler="pbt", space=space)


def diverged() -> Made:
    """A loss, of which less is better, and one trial of which explodes."""
    losses = [[2.0, 1.0], [3.0, 4e6], [2.0, 0.5]]
    trials = [trial(n, []) for n in range(3)]
    for each, values in zip(trials, losses, strict=True):
        each.epochs = [{"epoch": at, "val_loss": v} for at, v in enumerate(values, start=1)]
        each.score = values[-1]
    return state(*trials, metric="val_loss", mode="min"), config(metric="val_loss")


PAGES: dict[str, Callable[[], Made]] = {
    make.__name__: make
    for make in (
        finished,
        hostile,
        failed_one,
        all_failed,
        no_trial_yet,
        running,
        stopped,
        one_trial,
        one_field,
        categories,
        not_a_number,
        two_hundred,
        pbt,
        diverged,
    )
}
LINKS = ("../trial-002/report.html", "parallel.svg", "curves.svg")
NOTHING_TO_COMPARE = ("all_failed", "no_trial_yet")


def written(folder: Path, made: Made) -> Path:
    """The page of a sweep whose record is written into a folder."""
    (folder / "sweep").mkdir(parents=True)
    (folder / "sweep" / "state.json").write_text(json.dumps(asdict(made[0])))
    facts = {"config": made[1], "environment": {"python": "3.11"}}
    (folder / "sweep" / "sweep.yaml").write_text(yaml.safe_dump(facts, allow_unicode=True))
    return Path(write_sweep_report(Storage(str(folder))))


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Page]:
    folder = tmp_path_factory.mktemp("sweeps")
    found = {}
    for name, make in PAGES.items():
        (folder / name / "trial-002").mkdir(parents=True)
        (folder / name / "trial-002" / "report.html").touch()
        found[name] = Page(written(folder / name, make()).read_text())
    return found


# ---------------------------------------------------------------- every page


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole_and_loads_nothing(pages: dict[str, Page], name: str) -> None:
    page = pages[name]
    assert page.headings[0] == name and set(SECTIONS) <= set(page.headings)
    (policy,) = (m["content"] for m in page.all("meta") if "Content-Security" in str(m))
    assert str(policy).startswith("default-src 'none'")
    ids = {attrs.get("id") for _, attrs in page.elements}
    for tag, attrs in page.elements:
        assert tag not in ("script", "iframe", "object", "embed", "form", "img", "base")
        assert not any(attribute.startswith("on") for attribute in attrs), attrs
        if tag == "a":
            link = str(attrs["href"])
            assert link[1:] in ids or link in LINKS, link
    for rows in page.tables:
        assert len(rows) > 1 and len(set(rows)) == 1, rows
    assert all(attrs.get("scope") in ("col", "row") for attrs in page.all("th"))


@pytest.mark.parametrize("name", PAGES)
def test_every_figure_says_in_words_what_it_shows(pages: dict[str, Page], name: str) -> None:
    page = pages[name]
    pictures = [svg for svg in page.all("svg") if svg.get("aria-hidden") != "true"]
    assert len(pictures) == (0 if name in NOTHING_TO_COMPARE else 2)
    for svg in pictures:
        assert svg["role"] == "img" and len(str(svg["aria-label"])) > 40
    assert not re.search(r"\bnan\b|\binf\b", " ".join(str(p) for p in page.all("path")))


# ---------------------------------------------------------------- what a page says


def test_the_best_comes_first_with_its_values_and_a_link(pages: dict[str, Page]) -> None:
    text = pages["finished"].text
    assert "Best: average_precision 0.8000 trial-002" in text
    assert "trial-002 has learning_rate = 0.001, epochs = 3, loss = TripletMarginLoss, " in text
    order = re.findall(r"trial-\d+ [\d.]{6} ", text[text.index("The best first") :])
    assert [row.split()[0] for row in order] == ["trial-002", "trial-000", "trial-003", "trial-001"]
    assert "trial-003 0.2000 0.0001 4 SupConLoss – 2 stopped: AsyncHyperBand" in text
    assert "4: 2 finished, 2 stopped" in text and "after 1 min 15 s" in text
    assert text.count("◆ best") == 1
    links = [a["href"] for a in pages["finished"].all("a") if str(a["href"]).startswith("..")]
    assert links == ["../trial-002/report.html"] * 2, "of the trial that has a report, no other"


def test_what_users_wrote_is_text_and_nothing_else(pages: dict[str, Page]) -> None:
    page = pages["hostile"]
    assert page.text.count("<script>alert('x')</script>") > 8
    assert CHINESE in page.text and len(page.source) < 60_000


def test_failed_trials_have_their_reason(pages: dict[str, Page]) -> None:
    text = pages["failed_one"].text
    assert "trial-001 learning_rate = 0.01, epochs = 2, loss = SupConLoss the loss is nan" in text
    assert "What failed" not in pages["finished"].headings
    text = pages["all_failed"].text
    assert "The sweep failed no trial came to an end: no memory in 0" in text
    assert "The first 20 of 30." in text and "There is nothing to compare: no trial has" in text
    assert "--resume --set name=all_failed" in text


def test_a_sweep_that_goes_on_says_so_and_reloads(pages: dict[str, Page]) -> None:
    for name, page in pages.items():
        refresh = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "refresh"]
        assert refresh == (["30"] if name in ("running", "no_trial_yet") else [])
    assert "reloads every 30 s while the sweep goes on" in pages["running"].text
    assert "Best so far: average_precision 0.4000 trial-000" in pages["running"].text
    assert "3: 1 finished, 1 running, 1 waiting" in pages["running"].text
    assert "No trial was made yet." in pages["no_trial_yet"].text


def test_a_stopped_sweep_says_how_to_go_on(pages: dict[str, Page]) -> None:
    text = pages["stopped"].text
    assert "Stopped: the sweep was stopped" in text
    assert "ftray sweep sweep.yaml --resume --set name=stopped" in text
    assert "--resume" not in pages["finished"].text


def test_nan_is_shown_and_is_never_the_best(pages: dict[str, Page]) -> None:
    text = pages["not_a_number"].text
    assert "Best: average_precision 0.4000 trial-002" in text and "trial-000 NaN" in text
    labels = [str(svg.get("aria-label")) for svg in pages["not_a_number"].all("svg")]
    assert any("2 trials without a value" in label for label in labels)


def test_two_hundred_trials_stay_readable(pages: dict[str, Page]) -> None:
    page = pages["two_hundred"]
    assert "100 more are in sweep/state.json" in page.text and len(page.source) < 300_000
    assert [len(rows) for rows in page.tables] == [101]
    pale = [p for p in page.all("path") if "stroke:var(--band)" in str(p["style"])]
    assert len(pale) == 2 * 195, "all but the five best, in two figures"
    assert "Lines behind the best ones are pale" in page.text


def test_what_was_handed_over_is_told(pages: dict[str, Page]) -> None:
    text = pages["pbt"].text
    assert "until epoch 2: learning_rate = 0.05 until epoch 4: learning_rate = 0.01" in text
    assert "learning_rate = 0.125" in text


# ---------------------------------------------------------------- the figures are the record's


def paths(svg: str, ink: str) -> list[tuple[list[tuple[float, float]], str]]:
    """The open paths of an ink: the points of each, and its style."""
    found = re.findall(r'<path d="([^"]+)" style="([^"]+)"', svg)
    return [
        ([(float(x), float(y)) for x, y in re.findall(r"([\d.-]+) ([\d.-]+)", data)], style)
        for data, style in found
        if f"stroke:var(--{ink})" in style and "Z" not in data
    ]


def test_a_line_crosses_each_axis_at_the_value_of_its_trial() -> None:
    made, asked = finished()
    picture = parallel_picture(made, parse_space(asked["space"]))
    assert picture is not None
    axes = paths(str(picture.svg), "muted")
    assert len(axes) == 5, "four fields and the metric"
    foot, head = axes[0][0][0][1], axes[0][0][1][1]

    def at(share: float) -> float:
        return pytest.approx(foot + share * (head - foot), abs=0.06)  # type: ignore[return-value]

    ((best, style),) = paths(str(picture.svg), "best")
    # trial-002: 1e-3 of 1e-5…1e-1, 3 of 1…10, the first of two, margin 0.5, the highest value
    assert [y for _, y in best] == [at(0.5), at(2 / 9), at(0), at(0.5), at(1)]
    assert [x for x, _ in best] == [pytest.approx(points[0][0], abs=0.06) for points, _ in axes]
    assert "stroke-width:3" in style and "dasharray" not in style
    dashed = [points for points, style in paths(str(picture.svg), "line-1") if "dash" in style]
    # trial-003, drawn after trial-001: 1e-4, 4, the second loss, a gap, (0.2 - 0.1) / 0.7
    assert [y for _, y in dashed[1]] == [at(0.25), at(1 / 3), at(1), at(1 / 7)]
    assert len(dashed) == 2


def test_a_gap_is_a_gap() -> None:
    made, asked = finished()
    made.trials = [trial(0, [0.1]), trial(1, [0.9])]  # the best does not vary the last field
    picture = parallel_picture(made, parse_space(asked["space"]))
    assert picture is not None
    (data,) = re.findall(r'd="([^"]+)" style="[^"]*stroke:var\(--best\)', str(picture.svg))
    assert re.sub("[^ML]", "", data) == "MLLM", "three points are joined, the last is alone"
    points = re.findall(r'd="[^"]+Z" style="fill:var\(--best\)"', str(picture.svg))
    assert len(points) == 4, "and it is to be seen"


def test_a_failed_trial_is_dotted_and_ends_before_the_metric() -> None:
    made, asked = failed_one()
    picture = parallel_picture(made, parse_space(asked["space"]))
    assert picture is not None
    ((points, style),) = paths(str(picture.svg), "stop")
    assert "stroke-dasharray" in style
    assert len(points) == 3 and "1 trial without a value of it" in picture.summary


def test_curves_are_the_metric_by_epoch() -> None:
    picture = curves_picture(finished()[0])
    assert picture is not None
    svg = str(picture.svg)
    ((best, _),) = paths(svg, "best")
    others = [points for points, _ in paths(svg, "line-1")]
    assert [len(points) for points in others] == [1, 2, 3], "the better ones over the others"
    (x1, y1), (x2, y2), (x3, y3) = best  # 0.4, 0.6, 0.8
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)
    assert y1 - y2 == pytest.approx(y2 - y3, abs=0.2) and y1 > y3
    second = others[2]  # 0.2, 0.3, 0.5
    per_unit = (y1 - y3) / 0.4
    assert second[0][1] - y1 == pytest.approx(0.2 * per_unit, abs=0.3)
    assert second[0][1] - second[2][1] == pytest.approx(0.3 * per_unit, abs=0.3)
    crosses = re.findall(r'd="(M[^"C]+Z)" style="fill:var\(--line-1\)', svg)
    for data, line in zip(crosses, others[:2], strict=True):  # the two that were stopped early
        corners = np.array(re.findall(r"([\d.]+) ([\d.]+)", data), float)
        assert corners.mean(0) == pytest.approx(line[-1], abs=0.1), "the line ends with a cross"
    assert "trial-001 ends with 0.1000 after epoch 1, stopped early" in picture.summary


def test_the_figures_are_files_too(tmp_path: Path) -> None:
    page = written(tmp_path / "s", hostile())
    assert sorted(path.name for path in page.parent.glob("*.svg")) == ["curves.svg", "parallel.svg"]
    for path in page.parent.glob("*.svg"):
        image = ElementTree.parse(path).getroot()
        assert image.tag == "{http://www.w3.org/2000/svg}svg" and image.get("width") == "547.2pt"
        assert image[0].attrib == {
            "width": "547.2",
            "height": image[0].get("height"),
            "fill": "#ffffff",
        }
        inks = {style for part in image.iter() if (style := part.get("style"))}
        assert any("stroke:#116329" in style for style in inks), "the best"
        assert not any("var(" in style for style in inks)
    nothing = written(tmp_path / "none", no_trial_yet())
    assert not list(nothing.parent.glob("*.svg"))


def test_a_metric_over_several_decades_has_a_log_axis(pages: dict[str, Page]) -> None:
    labels = [str(svg.get("aria-label")) for svg in pages["diverged"].all("svg")]
    assert any("val_loss (0.5 to 4e+06, log axis). The best is trial-002" in s for s in labels)
    assert any(label.endswith("The axis is logarithmic.") for label in labels)


def test_scales_know_their_domains() -> None:
    rate = Scale.of("learning_rate", [1e-3], parse_space(SPACE)["learning_rate"])
    assert rate.log and (rate.low, rate.high) == (1e-5, 1e-1)
    assert [text for _, text in rate.ticks()] == ["1e-05", "0.0001", "0.001", "0.01", "0.1"]
    whole = Scale.of("epochs", [3], parse_space(SPACE)["epochs"])
    assert (whole.low, whole.high) == (1, 10), "the upper limit is never drawn"
    beyond = Scale.of("learning_rate", [0.125], parse_space(SPACE)["learning_rate"])
    assert beyond.high == 0.125 and beyond.place(0.125) == 1
    named = Scale.of("augmentation", [True, 1, None], None)
    assert [text for _, text in named.ticks()] == ["True", "1", "null"], "equal, and not the same"
    assert [named.place(value) for value in (True, 1, None)] == [0, 0.5, 1]
    assert Scale.of("seed", [4, 4], None).place(4) == 0.5


def test_the_order_is_that_of_the_mode() -> None:
    trials = [trial(0, [0.2]), trial(1, []), trial(2, [0.1]), trial(3, [math.nan]), trial(4, [0.2])]
    assert [t.number for t in state(*trials).ordered()] == [0, 4, 2, 1, 3]
    assert [t.number for t in state(*trials, mode="min").ordered()] == [2, 0, 4, 1, 3]


# ---------------------------------------------------------------- again


def test_the_recipe_is_the_sweep_again() -> None:
    given = config(stop=[{"EarlyStopping": {"monitor": METRIC}}], time_budget_s=60.0)
    whole = validated_sweep({**given, "name": "x", "resume": "auto"}).model_dump()
    found = sweep_recipe({"config": whole})
    assert found is not None and found.lost == []
    again = yaml.safe_load(found.text)
    assert again == given
    assert validated_sweep(again) == validated_sweep(given)


def test_the_recipe_says_what_cannot_be_had_back() -> None:
    fit = {
        "train_data": [{"text": "a"}] * 1500,
        "callbacks": ["mine.Callback", "EarlyStopping", {"EvaluationCallback": {"query_data": []}}],
    }
    space = {"seed": "ray.tune.search.sample.Integer"}
    found = sweep_recipe({"config": config(fit=fit, space=space, stop=["mine.Stop"])})
    assert found is not None and len(found.text) < 1000
    assert found.lost == [
        "fit.train_data was a list of 1,500 records",
        "fit.callbacks[0] was an object of the class mine.Callback",
        "fit.callbacks[2].EvaluationCallback.query_data was a list of 0 records",
        "stop[0] was an object of the class mine.Stop",
        "space.seed was an object of the class ray.tune.search.sample.Integer",
    ]
    assert sweep_recipe({"config": config(), "reproducible": False}).lost == [  # type: ignore[union-attr]
        "some option was an object of Python"
    ]


def test_domains_that_were_objects_still_have_axes(tmp_path: Path) -> None:
    made, asked = finished()
    asked["space"] = {name: "ray.tune.search.sample.Float" for name in SPACE}
    page = Page(written(tmp_path / "s", (made, asked)).read_text())
    assert any("learning_rate (0.0001 to 0.1)" in str(s.get("aria-label")) for s in page.all("svg"))


# ---------------------------------------------------------------- where it is


def test_the_page_of_a_uri_is_a_uri(tmp_path: Path) -> None:
    page = written(tmp_path / "my sweeps", one_trial())
    assert page == tmp_path / "my sweeps" / "sweep" / "report.html"
    uri = f"file://{tmp_path}/my%20sweeps"
    page.unlink()
    assert write_sweep_report(Storage(uri)) == f"{uri}/sweep/report.html" and page.exists()


def test_a_sweep_whose_process_is_gone_has_failed(tmp_path: Path) -> None:
    made, asked = running()
    made.seen_s, made.host = 5.0, "another"
    page = Page(written(tmp_path / "s", (made, asked)).read_text())
    assert "The sweep failed the process that ran it" in page.text and "--resume" in page.text
    assert read_state(Storage(str(tmp_path / "s"))).status == "FAILED"


def test_a_damaged_record_is_refused_by_name(tmp_path: Path) -> None:
    written(tmp_path / "s", one_trial())
    (tmp_path / "s" / "sweep" / "state.json").write_text('{"trials": [')
    with pytest.raises(StorageError, match=r"state\.json is damaged"):
        write_sweep_report(Storage(str(tmp_path / "s")))


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed here")
@pytest.mark.parametrize("name", ["hostile", "two_hundred"])
def test_nothing_sticks_out_or_is_too_pale_to_read(tmp_path: Path, name: str) -> None:
    page = written(tmp_path / name, PAGES[name]())
    seen = visit(page, width=390, dark=name == "hostile", ask=ASK)
    assert seen.complaints == seen.blocked == []
    assert seen.requests == [page.as_uri()]
    assert seen.values["sticks out"] <= 0 and seen.values["too pale"] == []
    assert seen.values["pictures"] == 2 and seen.values["blank"] == 0

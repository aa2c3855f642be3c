"""report.html: whole, self-contained and safe, whatever the run was."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from ftray.config import FitConfig
from ftray.record.reader import RecordReader
from ftray.record.storage import Storage
from ftray.report.page import render, write_report
from ftray.report.reproduce import recipe
from ftray.run import Run
from tests.handmade import FACTS, ended, started, step
from tests.report.pages import ARABIC, ATTACK, CHINESE, PAGES, made, scored

VOID = {"meta", "link", "br", "img", "path", "input", "hr"}
LOADS = {"src", "href", "srcset", "data", "action", "poster", "background", "xlink:href"}
SECTIONS = ("Quality", "Curves", "Where the time went", "Run it again", "Environment", "Log")


class Page(HTMLParser):
    """What a structural test asks of a page; raises where elements do not close."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[int]] = []
        self.words: list[str] = []
        self.headings: list[str] = []
        self.styles = ""
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append(0)
        if tag in ("td", "th"):
            self.tables[-1][-1] += 1
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("h1", "h2"):
            self.headings.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            self.styles += data
        else:
            self.words.append(data)
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings[-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Page]:
    folder = tmp_path_factory.mktemp("pages")
    return {
        name: Page(render(RecordReader(make(Storage(f"{folder}/{name}")))))
        for name, make in PAGES.items()
    }


# ---------------------------------------------------------------- every page


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_all_its_sections(pages: dict[str, Page], name: str) -> None:
    page = pages[name]
    assert page.headings[0] == name
    for section in SECTIONS:
        assert section in page.headings
    assert page.all("html") == [{"lang": "en"}] and len(page.all("h1")) == 1
    anchors = {attrs.get("id") for _, attrs in page.elements}
    links = [str(attrs["href"]) for attrs in page.all("a")]
    assert links and all(link[1:] in anchors for link in links)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_loads_nothing_and_runs_nothing(pages: dict[str, Page], name: str) -> None:
    page = pages[name]
    for tag, attrs in page.elements:
        assert tag not in ("script", "iframe", "object", "embed", "form", "img", "base")
        for attribute, value in attrs.items():
            assert not attribute.startswith("on"), (tag, attribute)
            assert attribute not in LOADS or str(value).startswith(("#", "data:")), (tag, value)
            assert "url(" not in str(value) or attribute not in ("style", "fill"), (tag, value)
    assert page.styles and not re.search(r"url\(|@import|expression", page.styles)
    (policy,) = (m["content"] for m in page.all("meta") if "Content-Security" in str(m))
    assert str(policy).startswith("default-src 'none'")


@pytest.mark.parametrize("name", PAGES)
def test_tables_are_complete_and_have_headers(pages: dict[str, Page], name: str) -> None:
    page = pages[name]
    assert page.tables
    for rows in page.tables:
        assert len(rows) > 1 and len(set(rows)) == 1, rows
    assert all(attrs.get("scope") in ("col", "row") for attrs in page.all("th"))


@pytest.mark.parametrize("name", PAGES)
def test_every_figure_says_in_words_what_it_shows(pages: dict[str, Page], name: str) -> None:
    pictures = [svg for svg in pages[name].all("svg") if svg.get("aria-hidden") != "true"]
    for svg in pictures:
        assert svg["role"] == "img" and len(str(svg["aria-label"])) > 20 and svg["viewbox"]
    assert len(pages[name].all("figure")) == len(pictures)
    assert bool(pictures) == (name not in ("failed_at_once", "older"))


# ---------------------------------------------------------------- what a page says


def test_what_users_wrote_is_text_and_nothing_else(pages: dict[str, Page]) -> None:
    page = pages["hostile"]
    assert page.text.count("<script>alert('x')</script>") > 10
    assert ATTACK in page.words and CHINESE in page.words and ARABIC in page.words
    directions = [attrs for _, attrs in page.elements if attrs.get("dir") == "auto"]
    assert len(directions) > 20


def test_long_texts_are_cut_and_can_be_opened(pages: dict[str, Page]) -> None:
    page = pages["hostile"]
    cut = [attrs for attrs in page.all("details") if attrs.get("class") == "long"]
    assert cut and "show all" in page.text
    assert "25,000 characters; the rest is in the run directory" in page.text
    assert len(page.source) < 200_000


def test_examples_stand_side_by_side_with_relevance_and_moves(pages: dict[str, Page]) -> None:
    page = pages["hostile"]
    relevant = [attrs for attrs in page.all("li") if attrs.get("class") == "relevant"]
    assert len(relevant) == 2 * 3  # document 2, before and after, of three queries
    assert page.words.count("relevant") == len(relevant), "not by colour alone"
    assert "↑ from 3" in page.words and "new" in page.words and "↓ from 1" in page.words


def test_the_change_has_its_interval_and_its_queries(pages: dict[str, Page]) -> None:
    page = pages["hostile"]
    assert "ndcg_at_k 0.3667 0.6000 +0.2333 −0.100 to +0.800" in page.text
    assert "1 better, 1 worse, 1 as before" in page.text.replace(" ,", ",")
    gained = page.text.index("Gained most")
    assert gained < page.text.index("0.1000 0.9000 +0.8000") < page.text.index("Lost most")
    assert page.text.index("Lost most") < page.text.index("0.5000 0.4000 −0.1000")


def test_ten_thousand_steps_make_a_small_page(pages: dict[str, Page]) -> None:
    page = pages["ten_thousand_steps"]
    assert len(page.source) < 150_000
    label = next(s["aria-label"] for s in page.all("svg") if "loss goes" in str(s))
    assert "in 10,000 steps" in str(label) and "the best step is 9,000" in str(label)
    assert "A point of a long curve is the mean of the steps around it" in page.text


def test_a_curve_of_derived_weights_is_not_a_curve_of_steps(pages: dict[str, Page]) -> None:
    page = pages["wise_ft"]
    labels = [str(svg["aria-label"]) for svg in page.all("svg") if "aria-label" in svg]
    assert "ndcg_at_k at step 0: 0.5000, at step 6: 0.7000." in labels
    (curve,) = (label for label in labels if label.startswith("in_ndcg_at_k over alpha"))
    assert "0: 0.5000, 0.2: 0.6000, 0.4: 0.7200, 0.8: 0.7100, 1: 0.7000; alpha 0.4 is" in curve
    (trade,) = (label for label in labels if "against" in label)
    assert trade.startswith("out_ndcg_at_k (upwards) against in_ndcg_at_k (to the right)")
    assert "0.4: 0.7500 and 0.7200" in trade
    assert "0.4 0.7200 0.7500 ◆ kept" in page.text
    assert "After: step 6, alpha 0.4, the weights of the artifact." in page.text
    assert "ndcg_at_k 0.5000 0.7200 +0.2200 +0.220 to +0.220" in page.text


def test_best_and_stop_are_marked(pages: dict[str, Page]) -> None:
    page = pages["early_stop"]
    assert page.words.count("best") == page.words.count("stop") == 4  # loss, three metrics
    assert "Training ended early: ndcg_at_k did not improve" in page.text
    assert "After: step 3, the weights of the artifact." in page.text


def test_a_run_that_goes_on_says_so_and_reloads(pages: dict[str, Page]) -> None:
    refresh = [m for m in pages["running"].all("meta") if m.get("http-equiv") == "refresh"]
    assert [m["content"] for m in refresh] == ["30"]
    assert "reloads every 30 s while the run goes on" in pages["running"].text
    for name in set(PAGES) - {"running"}:
        assert not [m for m in pages[name].all("meta") if m.get("http-equiv") == "refresh"]


def test_a_failed_run_says_why_first(pages: dict[str, Page]) -> None:
    page = pages["failed"]
    assert page.headings[:2] == ["failed", "The run failed"]
    assert "the loss is nan at step 3" in page.text[: page.text.index("Quality Nothing")]
    assert "1 of 2 steps had a loss that is no finite number, the first of them step 2" in page.text
    assert "open" in page.all("details")[-1], "the log is there to be read"
    assert "no reason is on record" in pages["failed_at_once"].text


def test_a_stopped_run_says_that_its_weights_were_not_evaluated(pages: dict[str, Page]) -> None:
    page = pages["stopped"]
    assert "Stopped: a stop was requested" in page.text
    assert "The weights of the artifact were not evaluated." in page.text


def test_what_is_no_number_is_called_so(pages: dict[str, Page]) -> None:
    assert "ndcg_at_k NaN NaN NaN –" in pages["not_a_number"].text
    assert "1 of 1 steps had a loss that is no finite number" in pages["not_a_number"].text


def test_scored_pairs_move_by_their_place_in_the_order(pages: dict[str, Page]) -> None:
    page = pages["scored_pairs"]
    assert "3 scored pairs." in page.text and "spearman -0.5000 1.0000 +1.5000" in page.text
    assert "2 better, 0 worse, 1 as before" in page.text.replace(" ,", ",")
    assert "0.6667 0.0000 −0.6667" in page.text


# ---------------------------------------------------------------- run it again


def test_the_recipe_is_the_run_again() -> None:
    given = {
        "model": "minilm",
        "train_data": "a.csv",
        "loss_options": {"margin": 0.1},
        "epochs": 7,
        "callbacks": [{"EarlyStopping": {"monitor": "train_loss", "patience": 4}}],
        "val_split": 0.5,
        "csv_options": {"delimiter": ";"},
    }
    config = FitConfig.model_validate({**given, "run_name": "x", "resume": "auto"}).model_dump()
    config["callbacks"] = [
        {
            "EarlyStopping": {
                "monitor": "train_loss",
                "mode": "auto",
                "patience": 4,
                "min_delta": 0.0,
            }
        }
    ]
    found = recipe({"config": config, "reproducible": True})
    assert found is not None and found.lost == []
    again = yaml.safe_load(found.text)
    assert set(again) == set(given) and again["callbacks"] == given["callbacks"]
    fresh = FitConfig.model_validate(again).model_dump(exclude={"callbacks"})
    assert fresh == FitConfig.model_validate(given).model_dump(exclude={"callbacks"})


def test_the_recipe_says_what_cannot_be_had_back() -> None:
    config = {
        "model": "bert",
        "train_data": "a list of 1,536 records",
        "callbacks": [
            "script.Mine",
            {"EvaluationCallback": {"query_data": "a Table of 3 records"}},
        ],
    }
    facts = {"config": config, "reproducible": False, "model": {"name": "b", "fingerprint": "f9"}}
    found = recipe(facts)
    assert found is not None
    assert found.lost == [
        "model was an object with the fingerprint f9, of which model/ is a copy",
        "train_data was a list of 1,536 records",
        "callbacks[0] was an object of the class script.Mine",
        "query_data of EvaluationCallback was a Table of 3 records",
    ]
    assert recipe({"config": {"model": "m"}, "reproducible": False}).lost == [  # type: ignore[union-attr]
        "some option was an object of Python"
    ]


# ---------------------------------------------------------------- run.report()


def test_report_is_written_where_it_is_missing_or_old(tmp_path: Path) -> None:
    storage = made(Storage(f"{tmp_path}/run"), started(), step(1), ended(1))
    run, page = Run(storage), tmp_path / "run" / "report.html"
    assert run.report() == str(page) and page.exists()
    page.write_text(page.read_text() + "<!-- untouched -->")
    run.report()
    assert "untouched" in page.read_text(), "nothing has changed, so nothing is written"
    os.utime(page, (1, 1))
    run.report()
    assert "untouched" not in page.read_text(), "it is older than the record"


def test_report_of_a_run_that_goes_on_is_always_new(tmp_path: Path) -> None:
    storage = PAGES["running"](Storage(f"{tmp_path}/run"))
    page = Path(Run(storage).report())
    page.write_text(page.read_text() + "<!-- untouched -->")
    assert "untouched" not in Path(Run(storage).report()).read_text()


def test_report_notices_that_a_run_is_gone(tmp_path: Path) -> None:
    storage = PAGES["running"](Storage(f"{tmp_path}/run"))
    page = Path(Run(storage).report())
    status = (tmp_path / "run" / "status.json").read_text()
    gone = re.sub(r'"seen_s": [\d.]+', '"seen_s": 5.0', status)
    (tmp_path / "run" / "status.json").write_text(gone)
    os.utime(page)
    text = Path(Run(storage).report()).read_text()
    assert "FAILED" in text and "gone without closing the record" in text


def test_report_of_a_uri_is_a_uri(tmp_path: Path) -> None:
    storage = made(Storage(f"file://{tmp_path}/my%20runs/one"), started(), ended(0))
    assert Run(storage).report() == f"file://{tmp_path}/my%20runs/one/report.html"
    assert (tmp_path / "my runs" / "one" / "report.html").exists()


def test_a_damaged_record_still_has_a_page(tmp_path: Path) -> None:
    storage = made(Storage(f"{tmp_path}/run"), started(), scored(0, [0.5], when="before"), ended(0))
    storage.write_text("run.yaml", "config: [")
    storage.write_text("examples.json", '{"evaluation": ')
    for name in storage.names("evaluations"):
        storage.write_text(f"evaluations/{name}", "no parquet")
    page = Page(Path(write_report(storage)).read_text())
    assert "is damaged" in page.text and "The configuration is not on record" in page.text


def test_neither_matplotlib_nor_jinja_is_imported_before_a_report_is_made() -> None:
    names = ["matplotlib", "jinja2"]
    program = (
        "import sys, ftray, ftray.run, ftray.launch.drive, ftray.report.live, ftray.report.page\n"
        f"print(*[n for n in {names} if n in sys.modules])"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_page_is_as_it_is_whatever_matplotlib_is_told_elsewhere(tmp_path: Path) -> None:
    import matplotlib

    storage = PAGES["early_stop"](Storage(f"{tmp_path}/run"))

    def figures() -> list[str]:
        return re.findall(r"<figure>.*?</figure>", render(RecordReader(storage)), re.S)

    plain = figures()
    mine = {
        "text.usetex": True,
        "font.size": 30,
        "axes.facecolor": "black",
        "lines.linewidth": 9,
        "lines.marker": "x",
        "axes.grid": True,
        "figure.autolayout": True,
        "path.simplify": False,
        "axes.formatter.use_mathtext": True,
        "xtick.bottom": True,
        "xtick.minor.visible": True,
        "axes.spines.top": False,
    }
    with matplotlib.rc_context(mine):
        assert figures() == plain
    assert FACTS["config"]["model"] in render(RecordReader(storage))

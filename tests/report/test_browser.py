"""report.html in a real browser: nothing is asked for, nothing complains, nothing sticks out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ftray.record.storage import Storage
from ftray.report.page import write_report
from tests.report.browser import BROWSER, Visit, visit
from tests.report.pages import ATTACK, PAGES

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium or Chrome is installed here to show the page in"
)

TOO_PALE = """
(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const light = color => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = [...canvas.getImageData(0, 0, 1, 1).data].map(v => v / 255);
    const f = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    return a === 0 ? null : 0.2126 * f(r) + 0.7152 * f(g) + 0.0722 * f(b);
  };
  const ground = node => {
    for (; node; node = node.parentElement) {
      const found = light(getComputedStyle(node).backgroundColor);
      if (found !== null) return found;
    }
    return 1;
  };
  const pale = [];
  for (const node of document.querySelectorAll('body *')) {
    const own = [...node.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own) continue;
    const style = getComputedStyle(node);
    const ink = light(node.closest('svg') ? style.fill : style.color);
    const [low, high] = [ink, ground(node)].sort((x, y) => x - y);
    if ((high + 0.05) / (low + 0.05) < 4.5) pale.push(node.textContent.slice(0, 40));
  }
  return pale;
})()
"""
ASK = {
    "sticks out": "document.scrollingElement.scrollWidth - window.innerWidth",
    "too pale": TOO_PALE,
    "pictures": "document.querySelectorAll('figure > svg').length",
    "blank": "[...document.querySelectorAll('figure > svg')].filter(s => "
    "s.getBoundingClientRect().height < 80 || !s.querySelector('path')).length",
    "scripts": "document.scripts.length",
    "images": "document.images.length",
    "ground": "getComputedStyle(document.body).backgroundColor",
}


def shown(name: str, folder: Path, **how: object) -> tuple[Path, Visit]:
    storage = PAGES[name](Storage(f"{folder}/<{name}> 'quoted' 文"))
    page = Path(write_report(storage))
    return page, visit(page, ask=ASK, **how)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "width", "dark"),
    [
        ("hostile", 390, False),
        ("hostile", 1200, True),
        ("wise_ft", 390, True),
        ("ten_thousand_steps", 1200, False),
        ("running", 800, False),
    ],
)
def test_a_page_shows_without_complaint_and_without_a_request(
    tmp_path: Path, name: str, width: int, dark: bool
) -> None:
    page, seen = shown(name, tmp_path, width=width, dark=dark)
    assert seen.complaints == []
    assert seen.requests == [page.as_uri()]
    assert seen.values["sticks out"] <= 0, "a reader would have to move the page sideways"
    assert seen.values["too pale"] == []
    assert seen.values["pictures"] > 2 and seen.values["blank"] == 0
    assert (seen.values["scripts"], seen.values["images"]) == (0, 0)
    assert seen.values["ground"] == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")
    assert seen.picture.startswith(b"\x89PNG") and seen.paper.startswith(b"%PDF")


def test_the_browser_would_notice(tmp_path: Path) -> None:
    """The measures above, on a page that is wrong in every way they look for."""
    page = tmp_path / "bad.html"
    script = json.dumps(ATTACK).replace("</", "<\\/")
    page.write_text(
        "<html><body style='background:#fff'><p style='color:#999;width:9999px'>pale</p>"
        f"<img src='missing.png'><script>console.error({script}); missing()</script></body></html>"
    )
    seen = visit(page, ask=ASK, width=390)
    assert any("evil.example" in said for said in seen.complaints)
    assert any("Uncaught" in said for said in seen.complaints)
    assert [r for r in seen.requests if r.endswith("missing.png")]
    assert seen.values["sticks out"] > 0 and "pale" in str(seen.values["too pale"])


def test_the_policy_of_the_page_stops_what_would_slip_in(tmp_path: Path) -> None:
    page, _ = shown("early_stop", tmp_path)
    text = page.read_text(encoding="utf-8")
    slipped = "<script>document.title = 'ran'</script><img src='https://evil.example/a.png'>"
    page.write_text(re.sub("<main>", lambda _: f"<main>{slipped}", text), encoding="utf-8")
    seen = visit(page, ask={"title": "document.title"})
    assert seen.values["title"] != "ran"
    assert seen.blocked == ["csp"] and len(seen.requests) == 2, "the image was never asked for"
    assert any("Content Security Policy" in said for said in seen.complaints)

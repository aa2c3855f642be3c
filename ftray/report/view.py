"""What the page shows, in the order in which it does: values for its template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ftray import __version__
from ftray.events import EvaluationEnded
from ftray.record.writer import side_of
from ftray.report import about
from ftray.report.contents import Contents
from ftray.report.figures import (
    Marks,
    Picture,
    alpha_picture,
    loss_picture,
    metric_picture,
    rate_picture,
    tradeoff_picture,
)
from ftray.report.quality import Quality, alpha_curves, qualities
from ftray.report.reproduce import recipe
from ftray.report.tables import picture

__all__ = ["view_of"]

MATCHES, QUERIES = 5, 10
EPOCH_ROWS = 60
TIMES = {
    "step": "forward, backward, optimizer",
    "data": "rows read and tokenised",
    "evaluation": "encoding, search and metrics",
    "validation": "the validation loss",
    "frozen weights": "what they make of the data, once",
    "checkpoint": "checkpoints and the artifact",
    "other": "start-up, callbacks, the rest",
}


def view_of(contents: Contents) -> dict[str, Any]:
    """All values of the template, by name."""
    marks = Marks.of(contents)
    found = qualities(contents)
    return {
        "run": contents,
        "generator": f"ftray {__version__}",
        "written": about.clock(contents.written_s),
        "facts": list(about.facts(contents)),
        "data": list(about.data(contents)),
        "qualities": found,
        "same_weights": _same_weights(contents),
        "curves": _present(loss_picture(contents, marks), rate_picture(contents)),
        "metric_curves": [
            {"name": quality.name, "pictures": _metric_pictures(contents, quality, marks)}
            for quality in found
        ],
        "own_curves": _own_pictures(contents, marks),
        "marks": marks,
        "epochs": _epochs(contents, found),
        "alphas": _alphas(contents),
        "examples": [shown for quality in found if (shown := _examples(contents, quality))],
        "times": _times(contents),
        "recipe": recipe(contents.facts),
        "folder": (contents.facts.get("environment") or {}).get("folder"),
        "environment": list(about.environment(contents.facts)),
        "log": about.log(contents),
    }


# ---------------------------------------------------------------- how it went


def _present(*pictures: Picture | None) -> list[Picture]:
    return [picture for picture in pictures if picture is not None]


def _metric_pictures(contents: Contents, quality: Quality, marks: Marks) -> list[Picture]:
    events = contents.curve(quality.name)
    if len(events) < 2:
        return []
    metrics = list(dict.fromkeys(change.metric for change in quality.changes))
    return _present(
        *(
            metric_picture(
                metric,
                [(e.global_step, e.metrics[metric]) for e in events if metric in e.metrics],
                marks,
            )
            for metric in metrics
        )
    )


def _own_pictures(contents: Contents, marks: Marks) -> list[Picture]:
    """Metrics that callbacks logged: no losses, and of no evaluation."""
    known = {key for event in contents.evaluations for key in event.keys.values()}
    known |= {"train_loss", "val_loss"}
    names = dict.fromkeys(n for e in contents.epochs for n in e.metrics if n not in known)
    return _present(
        *(
            metric_picture(
                name,
                [(e.global_step, e.metrics[name]) for e in contents.epochs if name in e.metrics],
                marks,
            )
            for name in names
        )
    )


def _epochs(contents: Contents, found: list[Quality]) -> dict[str, Any]:
    """The values of the epochs as a table; of very many epochs, evenly chosen ones."""
    keys = [next((c.key for c in q.changes if c.metric == q.main), "") for q in found]
    names = [
        name
        for name in ("train_loss", "val_loss", *keys)
        if any(name in event.metrics for event in contents.epochs)
    ]
    stride = -(-len(contents.epochs) // EPOCH_ROWS) or 1
    chosen = contents.epochs[::-1][::stride][::-1]
    return {
        "names": names,
        "left_out": len(contents.epochs) - len(chosen),
        "rows": [
            {
                "epoch": event.epoch + 1,
                "step": event.global_step,
                "values": [event.metrics.get(name) for name in names],
                "best": contents.best is not None
                and contents.best.global_step == event.global_step,
            }
            for event in chosen
        ],
    }


def _alphas(contents: Contents) -> dict[str, Any] | None:
    curves = alpha_curves(contents)
    if not curves:
        return None
    first, *others = curves
    alphas = sorted({alpha for curve in curves for alpha in curve.alphas})
    return {
        "curves": curves,
        "rows": [
            {
                "alpha": alpha,
                "kept": alpha == first.kept,
                "values": [c.at(alpha) if alpha in c.alphas else None for c in curves],
            }
            for alpha in alphas
        ],
        "kept": first.kept,
        "pictures": _present(*(alpha_picture(curve) for curve in curves)),
        "tradeoffs": _present(*(tradeoff_picture(first, other) for other in others)),
    }


def _times(contents: Contents) -> list[dict[str, Any]]:
    """Where the time went, the largest first; what no name accounts for is "other"."""
    if contents.ended is not None:
        seconds = dict(contents.ended.seconds)
    else:
        seconds = dict(contents.epochs[-1].seconds) if contents.epochs else {}
    if not seconds:
        return []
    resumed = contents.facts.get("resumed") or [{}]
    begun = resumed[-1].get("started_s") or contents.times.get("started_s")
    until = contents.times.get("ended_s", contents.written_s)
    if contents.ended is None:  # what was measured so far reaches to the last epoch's end
        until = contents.epochs[-1].time_s
    measured = sum(seconds.values())
    whole = max(measured, until - begun) if begun is not None else measured
    parts = [*sorted(seconds.items(), key=lambda part: -part[1]), ("other", whole - measured)]
    return [
        {
            "name": name,
            "what": TIMES.get(name, ""),
            "seconds": value,
            "share": value / whole if whole else 0.0,
        }
        for name, value in parts
    ]


# ---------------------------------------------------------------- examples


def _same_weights(contents: Contents) -> bool:
    """Whether "after" is of the artifact; while there is none it is what came last."""
    return contents.ended is not None


def _examples(contents: Contents, quality: Quality) -> dict[str, Any] | None:
    sides = contents.examples.get(quality.name) or {}
    before = sides.get("before") or {}
    key = _after_side(quality.after, sides)
    after = sides.get(key) or {}
    queries = list(dict.fromkeys([*before, *after]))
    if not queries:
        return None
    pictures = contents.query_images.get(quality.name) or {}
    shown = [
        {
            "query": query,
            "image": picture(pictures.get(query)),
            "before": _matches(before.get(query)),
            "after": _matches(after.get(query), before.get(query)),
        }
        for query in queries[:QUERIES]
    ]
    return {
        "name": quality.name,
        "after": "After" if _is_of(key, quality.after) else f"Later ({key})" if key else "After",
        "queries": shown,
        "left_out": len(queries) - len(shown),
    }


def _is_of(side: str, event: EvaluationEnded | None) -> bool:
    return event is not None and side_of(event) == side


def _after_side(after: EvaluationEnded | None, sides: Mapping[str, Any]) -> str:
    """The examples of the artifact's weights; where they were not gathered, the newest."""
    if after is not None and side_of(after) in sides:
        return side_of(after)
    return max((key for key in sides if key != "before"), default="")


def _matches(
    matches: list[dict[str, Any]] | None, before: list[dict[str, Any]] | None = None
) -> dict[str, Any] | None:
    if matches is None:
        return None
    ranks = {m.get("id"): rank for rank, m in reversed(list(enumerate(before or [], start=1)))}
    relevant = [rank for rank, m in enumerate(matches, start=1) if m.get("relevant")]
    return {
        "shown": [
            {
                "rank": rank,
                "text": str(match.get("text", "")),
                "image": picture(match.get("image")),
                "score": match.get("score"),
                "relevant": bool(match.get("relevant")),
                "moved": _moved(rank, ranks.get(match.get("id"))) if before is not None else "",
            }
            for rank, match in enumerate(matches[:MATCHES], start=1)
        ],
        "first": relevant[0] if relevant else None,
        "of": len(matches),
    }


def _moved(rank: int, was: int | None) -> str:
    if was is None:
        return "new"
    if was == rank:
        return ""
    return f"{'↑' if was > rank else '↓'} from {was}"

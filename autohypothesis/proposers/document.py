"""What a program is told: the situation as one bounded JSON document."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from autohypothesis.fleet.proposing import Situation, Trial
from autohypothesis.proposers.history import best_and_latest
from autohypothesis.proposers.knobs import knobs_of
from autohypothesis.schema import Proposal

MAX_TRIALS = 100
BEST = 25
"""Of those, so many of the best; the others are the latest."""
MAX_SOURCES = 200_000
"""Characters of all artifacts together."""
MAX_REFUSED = 50
MAX_TEXT = 1_000


def document_of(situation: Situation, count: int) -> dict[str, object]:
    """The situation for a program; `errors` is filled in when lines are given back."""
    told = best_and_latest(situation.trials, situation.direction, most=MAX_TRIALS, best=BEST)
    return {
        "answer": _instructions(),
        "count": count,
        "tag": situation.tag,
        "objective": {
            "metric": situation.metric,
            "direction": situation.direction,
            "min_delta": situation.min_delta,
        },
        "brief": situation.brief.model_dump(mode="json"),
        "steering": situation.steering.model_dump(mode="json"),
        "knobs": {
            name: knob.model_dump(mode="json", exclude_defaults=True)
            for name, knob in knobs_of(situation).items()
        },
        "reference": dict(situation.reference),
        "sources": _bounded_sources(situation.sources),
        "trials": [_trial(one, situation.reference) for one in told],
        "trials_in_all": len(situation.trials),
        "open": [
            {"hypothesis_id": one.hypothesis_id, "title": one.title} for one in situation.open
        ][:MAX_TRIALS],
        "refused": {
            title: why[:MAX_TEXT] for title, why in list(situation.refused.items())[:MAX_REFUSED]
        },
        "errors": [],
        "schema": Proposal.model_json_schema(),
    }


def _trial(trial: Trial, reference: Mapping[str, Any]) -> dict[str, object]:
    """A trial by what differs from the reference."""
    return {
        "experiment_id": trial.experiment_id,
        "differs": {
            name: value
            for name, value in trial.settings.items()
            if name not in reference or reference[name] != value
        },
        "value": trial.value,
        "status": trial.status,
        "seed": trial.seed,
        "replicates": trial.replicates,
    }


def _bounded_sources(sources: Mapping[str, str]) -> dict[str, str]:
    """Whole files while there is room: half a file makes a patch that does not apply."""
    kept, room = {}, MAX_SOURCES
    for path, text in sources.items():
        if len(text) <= room:
            kept[path] = text
            room -= len(text)
    return kept


@cache
def _instructions() -> str:
    """How to answer, for whoever reads the document without having read ours."""
    from jinja2 import Environment, FileSystemLoader

    folder = Path(__file__).parent / "templates"
    environment = Environment(loader=FileSystemLoader(folder), autoescape=False)
    return environment.get_template("answer.md.j2").render().strip()

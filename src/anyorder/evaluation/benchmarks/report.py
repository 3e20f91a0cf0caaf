"""Results as Markdown tables: the summary against the best peers, every side, the limits."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from collections.abc import Sequence as Seq

from anyorder.evaluation.benchmarks.goals import GOALS, MIXED_GOAL, Goal
from anyorder.evaluation.benchmarks.method_results import MethodResults
from anyorder.evaluation.benchmarks.results import Results, ratios
from anyorder.evaluation.benchmarks.sides import SIDES, Side, is_peer
from anyorder.evaluation.benchmarks.works import WORKS, Work
from anyorder.evaluation.tables import Cell, Column, Table

_WORKS = {work.name: work for work in WORKS}
_ORDER = {side.name: place for place, side in enumerate(SIDES)}


def markdown(results: Results) -> str:
    """Everything that was measured."""
    parts = []
    if any(is_peer(side) for side in results.sides()):
        parts.append(summary(results).markdown())
    if results.sides():
        parts.append(everything(results).markdown())
    if "large" in results.figures.values:
        parts.append(large(results).markdown())
    if results.limits and results.num_parameters:
        parts.append(limits(results).markdown())
    if results.checks:
        parts.append(checks(results).markdown())
    if results.methods.alone or results.methods.left_out:
        parts.append(methods(results.methods).markdown())
    if results.methods.batches:
        parts.append(mixed(results.methods).markdown())
    parts.append(conditions(results))
    return "\n".join(parts)


def spread(figures: Seq[float]) -> str:
    """Median [least-most], with three significant digits or so."""
    digits = 0 if statistics.median(figures) >= 100 else 1 if min(figures) >= 10 else 2
    middle, least, most = statistics.median(figures), min(figures), max(figures)
    return f"{middle:,.{digits}f} [{least:,.{digits}f}–{most:,.{digits}f}]"


def _columns(titles: Mapping[str, str]) -> list[Column]:
    return [Column(key=key, title=title) for key, title in titles.items()]


def summary(results: Results) -> Table:
    """anyorder beside the best peer, goal by goal."""
    rows = [row for goal in GOALS if (row := _goal_row(results, goal)) is not None]
    titles = {
        "work": "work",
        "ours": "anyorder",
        "theirs": "best peer",
        "ratio": "ratio",
        "limit": "of the limit",
        "goal": "goal",
        "met": "met",
    }
    return Table(
        columns=_columns(titles),
        rows=rows,
        notes=(
            "Medians [least–most] of the rounds; ratio = anyorder / best peer, of the medians and "
            "[least–most] of single rounds. A side whose tokens differ is not counted.",
        ),
    )


def _goal_row(results: Results, goal: Goal) -> dict[str, Cell] | None:
    work = _WORKS[goal.work]
    sides = [side for side in results.sides() if goal.format in ("", side.format)]
    own = [side for side in sides if not is_peer(side)]
    peers = [side for side in sides if is_peer(side)]
    peers = [side for side in peers if not goal.peers or side.engine in goal.peers]
    higher = work.higher_is_better
    ours = results.best(goal.work, own, higher=higher)
    theirs = results.best(goal.work, peers, higher=higher)
    if ours is None:
        return None
    values = results.figures.values[goal.work]
    middle = statistics.median(values[ours.name])
    row: dict[str, Cell] = {
        "work": f"{goal.title} ({work.unit}, {'more' if higher else 'less'} is better)",
        "ours": f"{spread(values[ours.name])} {ours.kind}",
    }
    met: list[bool] = []
    aims: list[str] = []
    if theirs is not None:
        ratio, least, most = ratios(values[ours.name], values[theirs.name])
        row["theirs"] = f"{spread(values[theirs.name])} {theirs.name}"
        row["ratio"] = f"**{ratio:.2f}** [{least:.2f}–{most:.2f}]"
        if goal.ratio is not None:
            met.append(ratio >= goal.ratio if higher else ratio <= goal.ratio)
    if goal.ratio is not None:
        aims.append(f"{'at least' if higher else 'at most'} {goal.ratio:.2g}x")
    if goal.figure is not None:
        aims.append(f"at most {goal.figure:g} {work.unit}")
        met.append(middle <= goal.figure)
    limit = results.limit(goal.work, ours.format)
    if goal.share is not None:
        aims.append(f"at least {goal.share:.0%} of the limit")
        if limit is not None:
            met.append(middle >= goal.share * limit)
    row["limit"] = None if limit is None else f"{middle / limit:.0%}"
    row["goal"] = " or ".join(aims)
    row["met"] = None if not met else "yes" if any(met) else "**no**"
    return row


def everything(results: Results) -> Table:
    """A row a side, a column a work."""
    works = [work for work in WORKS if work.name in results.figures.values]
    columns = [Column(key="side", title="engine and weights")]
    columns += [Column(key=work.name, title=f"{work.name}, {work.unit}") for work in works]
    rows = [
        {
            "side": _named(results, side),
            **{work.name: _figure(results, side, work) for work in works},
        }
        for side in results.sides()
    ]
    notes = [f"{work.name}: {work.title}." for work in works]
    notes += [f"{side}: {reason}" for side, reason in results.absent.items()]
    for name, failures in results.figures.failures.items():
        notes += [f"{side} failed at {name}: {words}" for side, words in failures.items()]
    return Table(columns=columns, rows=rows, notes=("\n".join(f"- {note}" for note in notes),))


def _named(results: Results, side: Side) -> str:
    differs = side.name in results.checks and results.checks[side.name].differs
    return f"{side.name} (differs)" if differs else side.name


def _figure(results: Results, side: Side, work: Work) -> str | None:
    if side.name in results.figures.failures.get(work.name, {}):
        return "failed"
    figures = results.figures.values[work.name].get(side.name)
    return None if figures is None else spread(figures)


def limits(results: Results) -> Table:
    """What the machine could do, and how near anyorder comes."""
    rows: list[dict[str, Cell]] = []
    for side in results.sides():
        if is_peer(side):
            continue
        row: dict[str, Cell] = {"format": side.format}
        for work in ("decode", "prefill"):
            limit = results.limit(work, side.format)
            row[work] = None if limit is None else f"{limit:,.0f}"
            figures = results.figures.values.get(work, {}).get(side.name)
            if limit and figures:
                row[f"{work}_share"] = f"{statistics.median(figures) / limit:.0%}"
        num_bytes = results.weight_bytes(side.format)
        row["mb"] = f"{num_bytes / 1e6:,.0f}"
        row["rate"] = _rate(results, num_bytes)
        rows.append(row)
    peaks = ", ".join(f"{name} {rate:.2f}" for name, rate in results.limits["teraflops"].items())
    titles = {
        "format": "weights",
        "mb": "MB",
        "rate": "GB/s over so many bytes",
        "decode": "decode at most, tok/s",
        "decode_share": "reached",
        "prefill": "prefill at most, tok/s",
        "prefill_share": "reached ",
    }
    return Table(
        columns=_columns(titles),
        rows=rows,
        notes=(
            f"Measured in the same run. Matrix peak in tera-operations a second: {peaks}. Decode "
            "at most: all weights read once a token. Prefill at most: two operations a weight and "
            "token at the peak of the format (int8 for 8-bit and 4-bit).",
        ),
    )


def _rate(results: Results, num_bytes: int) -> str | None:
    rate = results.bandwidth(num_bytes)
    return None if rate is None else f"{rate:.1f}"


def large(results: Results) -> Table:
    """A network of which every token reads far more than caches hold, beside what memory gives."""
    rows: list[dict[str, Cell]] = []
    for side in results.sides():
        figures = results.figures.values["large"].get(side.name)
        if figures is None:
            continue
        num_bytes = results.weight_bytes(side.format, "large")
        limit = results.limit("large", side.format)
        middle = statistics.median(figures)
        rows.append(
            {
                "format": side.format,
                "mb": f"{num_bytes / 1e6:,.0f}",
                "speed": spread(figures),
                "reached": f"{middle * num_bytes / 1e9:.1f}",
                "rate": _rate(results, num_bytes),
                "share": None if limit is None else f"{middle / limit:.0%}",
            }
        )
    titles = {
        "format": "1B, weights",
        "mb": "MB a token",
        "speed": "decode, tok/s",
        "reached": "GB/s reached",
        "rate": "GB/s over so many bytes",
        "share": "share",
    }
    return Table(
        columns=_columns(titles),
        rows=rows,
        notes=("The head's weights have 8 bits in both.",),
    )


def checks(results: Results) -> Table:
    """Tokens and perplexity."""
    rows: list[dict[str, Cell]] = [
        {
            "side": name,
            "tokens": check.shown(),
            "tolerance": f"{check.tolerance:g}",
            "perplexity": check.perplexity,
        }
        for name, check in sorted(results.checks.items(), key=lambda item: _ORDER[item[0]])
    ]
    return Table(
        columns=[
            Column(key="side", title="engine and weights"),
            Column(key="tokens", title="greedy tokens beside anyorder float32"),
            Column(key="tolerance", title="tolerance, nats"),
            Column(key="perplexity", title="perplexity on real text", digits=3),
        ],
        rows=rows,
        notes=(
            "Where a side's token is not the reference's, the gap is how much likelier the "
            "reference finds its own; beyond the tolerance the side counts as differing, and its "
            "figures are not compared.",
        ),
    )


def methods(results: MethodResults) -> Table:
    """Every method on one stream."""
    rows: list[dict[str, Cell]] = [
        {
            "method": name,
            "model": speed.model,
            "per_pass": speed.tokens_per_pass,
            "rate": spread(speed.tokens_per_second),
        }
        for name, speed in sorted(results.alone.items())
    ]
    notes = [f"- {name} was left out: {reason}" for name, reason in results.left_out.items()]
    return Table(
        columns=[
            Column(key="method", title="method"),
            Column(key="model", title="model"),
            Column(key="per_pass", title="tokens per pass"),
            Column(key="rate", title="one stream, tok/s"),
        ],
        rows=rows,
        notes=("\n".join(notes),) if notes else (),
    )


def mixed(results: MethodResults) -> Table:
    """All methods of a model in one batch."""
    rows: list[dict[str, Cell]] = []
    for model, batch in results.batches.items():
        ratio, least, most = ratios(batch.mixed, batch.one_by_one)
        name, share = batch.longest or ("", 0.0)
        rows.append(
            {
                "model": model,
                "methods": len(batch.methods),
                "mixed": spread(batch.mixed),
                "apart": spread(batch.one_by_one),
                "ratio": f"**{ratio:.2f}** [{least:.2f}–{most:.2f}]",
                "longest": f"{name} {share:.0%}" if name else "–",
                "run": "–" if batch.run_tokens is None else f"{batch.run_tokens:.1f}",
                "goal": f"at least {MIXED_GOAL:g}x",
                "met": "yes" if ratio >= MIXED_GOAL else "**no**",
                "tokens": f"differ: {', '.join(batch.differing)}"
                if batch.differing
                else "the same",
            }
        )
    titles = {
        "model": "model",
        "methods": "methods",
        "mixed": "all in one batch, tok/s",
        "apart": "method by method, tok/s",
        "ratio": "ratio",
        "longest": "longest by itself",
        "run": "run for a new token",
        "goal": "goal",
        "met": "met",
        "tokens": "tokens",
    }
    return Table(columns=_columns(titles), rows=rows)


def conditions(results: Results) -> str:
    """Model, machine and versions in a few lines."""
    rounds = results.figures.num_rounds or max(
        (len(speed.tokens_per_second) for speed in results.methods.alone.values()), default=0
    )
    where = ", ".join(f"{key} {value}" for key, value in results.machine.items() if value)
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    return (
        f"{results.model}, {results.num_parameters / 1e6:,.0f} million parameters; "
        f"{results.threads} threads; {rounds} round{'s' * (rounds != 1)}.\n{where}\n{versions}\n"
    )

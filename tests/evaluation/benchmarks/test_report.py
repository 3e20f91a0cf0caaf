"""Results as data, tables and a picture, from figures whose ratios are known."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest
from tests.evaluation.benchmarks.stand_ins import SLOWNESS

from anyorder.core.errors import InvalidRequest
from anyorder.evaluation.benchmarks import report
from anyorder.evaluation.benchmarks.checks import Check
from anyorder.evaluation.benchmarks.method_results import MethodResults, MethodSpeed, MixedSpeed
from anyorder.evaluation.benchmarks.picture import picture
from anyorder.evaluation.benchmarks.results import Results, ratios
from anyorder.evaluation.benchmarks.rounds import Figures
from anyorder.evaluation.benchmarks.sides import SIDES


def results(**changes: Any) -> Results:
    """Every side decodes 10 tokens a second for its place in the list, in three rounds, and takes
    as many seconds to start."""
    found = Results(model="m", num_parameters=100_000_000, threads=2)
    for name, place in SLOWNESS.items():
        for work, least in (("decode", 10 * place), ("start", place)):
            figures = [float(least), least + 1.0, least + 2.0]
            found.figures.values.setdefault(work, {})[name] = figures
        found.checks[name] = Check(
            first_difference=None, largest_gap=0.0, gap_at=0, perplexity=10.0, tolerance=0.5
        )
    sizes = {"400000000": 30.0, "200000000": 30.0, "106250000": 34.0, "62500000": 50.0}
    rates = {"float32": 0.2, "bfloat16": 1.0, "int8": 2.0}
    found.limits = {"gigabytes_per_second": sizes, "teraflops": rates}
    for name, value in changes.items():
        setattr(found, name, value)
    return found


def differing(found: Results, name: str) -> None:
    found.checks[name] = Check(
        first_difference=2, largest_gap=3.0, gap_at=7, perplexity=90.0, tolerance=0.5
    )


def test_data_goes_through_json() -> None:
    found = results()
    found.methods.alone["a"] = MethodSpeed(model="m", tokens_per_pass=2.0, tokens_per_second=[3.0])
    found.methods.batches["m"] = MixedSpeed(methods=["a", "b"], mixed=[2.0], one_by_one=[1.0])
    found.methods.batches["m"].seconds = {"a": [1.0, 3.0], "b": [6.0, 6.0]}
    assert found.methods.batches["m"].longest == ("b", 0.75)
    again = Results.from_dict(json.loads(json.dumps(found.to_dict())))
    assert again == found and again.figures.num_rounds == 3
    for bad in ({}, [], {**found.to_dict(), "more": 1}, {**found.to_dict(), "figures": 3}):
        with pytest.raises(InvalidRequest, match="holds no results"):
            Results.from_dict(bad)  # type: ignore[arg-type]


def test_ratios_are_of_medians_and_of_rounds() -> None:
    assert ratios([1.0, 2.0, 6.0], [2.0, 2.0, 2.0]) == (1.0, 0.5, 3.0)
    assert ratios([4.0, 4.0], [2.0, 4.0, 4.0]) == (1.0, 1.0, 2.0)


def test_limits() -> None:
    found = results()
    assert found.limit("decode", "float32") == pytest.approx(75.0)
    assert found.limit("decode", "4-bit") == pytest.approx(800.0)
    assert found.limit("prefill", "16-bit") == pytest.approx(5000.0)
    assert found.limit("prefill", "4-bit") == pytest.approx(10_000.0)
    assert found.limit("batch", "4-bit") is None
    rows = {row["format"]: row for row in report.limits(found).rows}
    assert rows["float32"]["decode_share"] == f"{11 / 75:.0%}"
    assert "prefill_share" not in rows["float32"]


def test_a_large_network_beside_the_bandwidth() -> None:
    found = results()
    num_bytes = found.weight_bytes("4-bit", "large")
    found.figures.values["large"] = {"anyorder int4": [20.0, 30.0, 40.0]}
    assert found.limit("large", "4-bit") is None
    assert report.large(found).rows[0]["share"] is None
    found.limits["gigabytes_per_second"][str(num_bytes)] = 33.0 * num_bytes / 1e9
    (row,) = report.large(found).rows
    assert row["share"] == "91%" and row["mb"] == "887"
    assert row["reached"] == f"{30 * num_bytes / 1e9:.1f}" and row["rate"] == "29.3"
    goal = by_work(found)["single-stream decode, 1B, 4-bit"]
    assert goal["goal"] == "at least 85% of the limit"
    assert goal["met"] == "yes" and goal["limit"] == "91%"
    found.figures.values["large"]["anyorder int4"] = [28.0] * 3
    assert by_work(found)["single-stream decode, 1B, 4-bit"]["met"] == "**no**"
    assert "1B, weights" in report.markdown(found)
    alone = results(num_parameters=0, limits={"gigabytes_per_second": {}, "teraflops": {}})
    assert alone.limit("decode", "4-bit") is None is alone.limit("prefill", "4-bit")
    assert "decode at most" not in report.markdown(alone)


def by_work(found: Results) -> dict[str, Any]:
    return {str(row["work"]).partition(" (")[0]: row for row in report.summary(found).rows}


def test_the_summary_takes_the_best_peer_of_the_format() -> None:
    rows = by_work(results())
    four = rows["single-stream decode, 4-bit"]  # anyorder is 12th, OpenVINO 14th
    assert four["theirs"] == "141 [140–142] OpenVINO as it comes"
    assert four["ratio"] == f"**{121 / 141:.2f}** [{120 / 140:.2f}–{122 / 142:.2f}]"
    assert four["met"] == "**no**" and four["limit"] == f"{121 / 800:.0%}"
    start = rows["process start to first token"]  # less is better, and only transformers counts
    assert start["theirs"] == "3.00 [2.00–4.00] transformers float32"
    assert start["ours"] == "2.00 [1.00–3.00] float32" and start["met"] == "**no**"
    assert "peak memory, 4-bit, one stream" not in rows  # not measured


def test_a_goal_is_met_by_ratio_or_by_figure() -> None:
    found = results()
    found.figures.values["start"]["anyorder int4"] = [1.1, 1.1, 1.1]
    found.figures.values["decode"]["anyorder int4"] = [150.0] * 3
    rows = by_work(found)
    assert rows["process start to first token"]["met"] == "yes"
    assert rows["single-stream decode, 4-bit"]["met"] == "yes"


def test_sides_whose_tokens_differ_are_not_compared() -> None:
    found = results()
    differing(found, "OpenVINO as it comes")
    assert by_work(found)["single-stream decode, 4-bit"]["theirs"].endswith("llama.cpp as it comes")
    differing(found, "anyorder int4")
    assert "single-stream decode, 4-bit" not in by_work(found)
    assert "| anyorder int4 (differs)" in report.everything(found).markdown()
    table = report.checks(found).markdown()
    assert table.count("differs at token 7 by 3 nats") == 2 and "90.000" in table


def test_everything_is_told() -> None:
    failures = {"prefill": {"llama.cpp BF16": "no room"}}
    found = results(
        figures=Figures(values=results().figures.values, failures=failures),
        absent={"CTranslate2 int8": "no wheel"},
        machine={"cpu": "abacus", "cores": "2", "memory": ""},
        versions={"anyorder": "0.1"},
    )
    found.methods = MethodResults(
        alone={"jacobi": MethodSpeed(model="m", tokens_per_pass=1.5, tokens_per_second=[9.0, 8.0])},
        batches={
            "m": MixedSpeed(
                methods=["a", "b"],
                mixed=[4.0],
                one_by_one=[2.0],
                seconds={"a": [1.0], "b": [3.0]},
                run_tokens=2.25,
            ),
            "older": MixedSpeed(methods=["a", "b"], mixed=[4.0], one_by_one=[2.0]),
        },
        left_out={"ctc": "no network"},
    )
    text = report.markdown(found)
    for words in (
        *("llama.cpp BF16 failed at prefill: no room", "CTranslate2 int8: no wheel"),
        *("cpu abacus, cores 2\n", "anyorder 0.1", "3 rounds", "2 threads"),
        *("ctc was left out: no network", "**2.00** [2.00–2.00]", "the same"),
        *("| b 75% ", "| 2.2 ", "| older "),
    ):
        assert words in text, words
    for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
        lines = table.splitlines()
        assert len({line.count("|") for line in lines}) == 1 and len(lines) > 2


def test_without_peers_there_is_no_summary() -> None:
    found = results()
    own = {side.name for side in SIDES if side.engine == "anyorder"}
    for values in found.figures.values.values():
        for name in set(values) - own:
            del values[name]
    assert "best peer" not in report.markdown(found)


def test_the_picture() -> None:
    root = ET.fromstring(picture(results()))
    bars = [r for r in root.iter("{http://www.w3.org/2000/svg}rect") if "now" in r.get("class", "")]
    own = [place for name, place in SLOWNESS.items() if name.startswith("anyorder")]
    widths = [float(bar.get("width", "0")) for bar in bars][: len(own)]
    places = [width / widths[0] for width in widths]
    # The first work is start; medians are one more than the place.
    assert places == pytest.approx([(place + 1) / 2 for place in own], rel=0.02)
    titles = [node.text or "" for node in root.iter("{http://www.w3.org/2000/svg}title")]
    assert len(titles) == 2 * len(SIDES) and "the same tokens" in titles[0]

"""Tables: what is shown, what is left out, ratios."""

from __future__ import annotations

from anyorder.evaluation.tables import Column, Table

COLUMNS = (
    Column(key="model", title="model"),
    Column(key="perplexity", title="perplexity", ratio=True),
    Column(key="error", title="±"),
    Column(key="tokens", title="tokens"),
)
ROWS = (
    {"model": "a|b", "perplexity": 20.0, "tokens": 12345, "error": None},
    {"model": "c", "perplexity": 26.5, "tokens": 12345, "error": 0.126},
)


def test_markdown() -> None:
    table = Table(columns=COLUMNS, rows=ROWS, notes=["Read with care."]).with_ratios()
    assert table.markdown() == (
        "| model | perplexity | ratio | ±    | tokens |\n"
        "|-------|------------|-------|------|--------|\n"
        "| a\\|b  | 20.00      | 1.000 | –    | 12,345 |\n"
        "| c     | 26.50      | 1.325 | 0.13 | 12,345 |\n"
        "\n"
        "Read with care.\n"
    )


def test_columns_without_a_value_are_left_out() -> None:
    table = Table(columns=COLUMNS, rows=ROWS[:1]).with_ratios()
    assert table.cells() == [["model", "perplexity", "tokens"], ["a|b", "20.00", "12,345"]]


def test_there_is_no_ratio_of_what_was_not_measured() -> None:
    rows = [{"model": "a", "perplexity": None}, {"model": "b", "perplexity": 2.0}]
    table = Table(columns=COLUMNS, rows=rows).with_ratios()
    assert table.cells()[0] == ["model", "perplexity"]
    table = Table(columns=COLUMNS, rows=rows[::-1]).with_ratios()
    assert [row[1:] for row in table.cells()] == [
        ["perplexity", "ratio"],
        ["2.00", "1.000"],
        ["–", "–"],
    ]


def test_plain_data_is_not_rounded() -> None:
    table = Table(columns=COLUMNS, rows=ROWS, notes=["x"]).with_ratios()
    data = table.to_dict()
    assert data["rows"][1]["perplexity_ratio"] == 26.5 / 20 and data["notes"] == ["x"]
    assert data["rows"][1]["error"] == 0.126

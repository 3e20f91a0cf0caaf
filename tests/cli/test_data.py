"""`anyorder data`: the list, pulling what needs no network, and its mistakes."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Run

from anyorder.training import corpora

LOCAL = "python-standard-library"


def test_list(run: Run) -> None:
    lines = run("data", "list").out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(corpora.CATALOG)
    assert all("not here" in line for line in lines[1:])
    assert "MPL-2.0" in next(line for line in lines if line.startswith("libreoffice"))
    data = run("data", "list", "--json").json
    assert [entry["name"] for entry in data] == list(corpora.CATALOG)
    assert not any(entry["here"] for entry in data)


def test_pull(run: Run) -> None:
    outcome = run("data", "pull", LOCAL)
    assert outcome.code == 0 and "licence: PSF-2.0" in outcome.err
    file = Path(outcome.out.strip())
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert f"{len(rows):,} documents" in outcome.err
    facts = run("data", "pull", LOCAL, "--json").json
    assert facts["num_documents"] == len(rows) and facts["packages"] == []
    (line,) = (line for line in run("data", "list").out.splitlines() if line.startswith(LOCAL))
    assert f"{len(rows):,}" in line and f"{facts['num_bytes'] / 1e6:.1f} MB" in line


def test_mistakes(run: Run) -> None:
    for arguments, words in {
        ("pull",): "needs a set's name",
        ("list", "x"): "takes no name",
        ("pul", "x"): "did you mean 'pull'",
        ("pull", "jane-austin"): "did you mean 'jane-austen'",
        ("pull", "jane-austen"): "ANYORDER_OFFLINE forbids downloads",
    }.items():
        outcome = run("data", *arguments)
        assert outcome.code == 2 and words in outcome.err and outcome.err.count("\n") == 1

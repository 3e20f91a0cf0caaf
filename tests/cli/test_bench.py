"""`anyorder bench`: flags, files, and a comparison of anyorder with itself on a tiny model."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from tests.cli.conftest import Run
from tests.cli.test_mistakes import refused

from anyorder.evaluation.benchmarks.large import LARGE, Shape
from anyorder.evaluation.benchmarks.results import Results
from anyorder.evaluation.benchmarks.session import Session
from anyorder.evaluation.benchmarks.works import WORKS


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--peers", "llama"], ["unknown peer 'llama'", "llama.cpp"]),
        (["--work", "decoding"], ["unknown work", "did you mean 'decode'"]),
        (["--rounds", "-1"], ["--rounds", "at least 0", "-1"]),
        (["--threads", "0"], ["--threads", "at least 1"]),
        (["--append"], ["--append", "--output"]),
        (["--output", "x.md"], ["--output", ".json", "x.md"]),
    ],
)
def test_mistakes(run: Run, model: str, tmp_path: Path, flags: list[str], words: list[str]) -> None:
    if "--peers" in flags:
        model = str(tmp_path / "nothing.gguf")
    refused(run("bench", "-m", model, *flags), *words)


def test_peers_need_a_gguf_file(run: Run, model: str) -> None:
    refused(run("bench", "-m", model, "--peers", "openvino"), "GGUF", "folder")


def test_only_results_of_the_same_kind_are_added_to(run: Run, model: str, tmp_path: Path) -> None:
    flags = ["-m", model, "--work", "start", "--rounds", "0", "--append", "--output"]
    file = tmp_path / "bench.json"
    file.write_text("[]")
    refused(run("bench", *flags, str(file)), "holds no results")
    file.write_text("{")
    refused(run("bench", *flags, str(file)), "not JSON")


def test_rounds_and_files(run: Run, model: str, tmp_path: Path) -> None:
    output = tmp_path / "bench.json"
    page = tmp_path / "bench.md"
    marks = "<!-- anyorder bench: begin -->", "<!-- anyorder bench: end -->"
    page.write_text(f"# Speed\n\n{marks[0]}\nold\n{marks[1]}\n\nthe end\n")
    flags = ["-m", model, "--work", "memory", "--threads", "1", "--rounds", "1"]
    first = run("bench", *flags, "--output", str(output))
    assert "memory, MB" in first.out and "1 round." in first.out
    # Four bits are too few for a tiny random network, and that is told by the exit code.
    assert first.code == 1 and "differs at token" in first.out
    again = run("bench", *flags, "--output", str(output), "--append", "--json")
    kept = json.loads(output.read_text())
    assert json.loads(again.out) == kept and again.code == 1
    figures = kept["figures"]["values"]["memory"]
    assert len(figures["anyorder float32"]) == 2 and figures["anyorder float32"][0] > 50
    assert kept["checks"]["anyorder float32"]["first_difference"] is None
    text = page.read_text()
    assert text.startswith(f"# Speed\n\n{marks[0]}\n") and "old" not in text
    assert text.endswith(f"{marks[1]}\n\nthe end\n") and "2 rounds" in text
    assert output.with_suffix(".svg").read_text().startswith("<svg")
    refused(
        run("bench", *flags, "--threads", "2", "--output", str(output), "--append"),
        "of threads 1, not 2",
    )


def test_a_large_network(run: Run, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(
        LARGE, width=128, num_layers=1, num_heads=4, num_kv_heads=2, mlp_width=128, vocabulary=320
    )
    changed = [replace(work, shape=work.shape and small) for work in WORKS]
    monkeypatch.setattr("anyorder.evaluation.benchmarks.works.WORKS", changed)
    monkeypatch.setattr("anyorder.evaluation.benchmarks.results.LARGE", small)

    def limits(session: Session, results: Results, shapes: list[Shape]) -> None:  # takes seconds
        sizes = [shape.weight_bytes(name) for shape in shapes for name in ("8-bit", "4-bit")]
        rates = dict.fromkeys(map(str, sizes), 8.5)
        results.limits = {"gigabytes_per_second": rates, "teraflops": {}}

    monkeypatch.setattr(Session, "_limits", limits)
    outcome = run("bench", "-m", model, "--work", "large", "--threads", "1", "--rounds", "1")
    assert outcome.code == 0, outcome.err
    assert "writing llama-3.2-1b-random.gguf" in outcome.err
    for bits in ("8-bit", "4-bit"):
        (row,) = re.findall(rf"^\| {bits} .*", outcome.out, re.M)
        assert "| 8.5 " in row and "%" in row


def test_methods(run: Run, model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("anyorder.model.shipping.shipped_models", dict)
    monkeypatch.setattr("anyorder.evaluation.benchmarks.methods.NUM_NEW", 4)
    output = str(tmp_path / "bench.json")
    flags = ["-m", model, "--methods", "--threads", "1", "--rounds", "1", "--output", output]
    outcome = run("bench", *flags)
    assert outcome.code == 0, outcome.err
    assert "all in one batch" in outcome.out and "| the same" in outcome.out
    found = run("bench", *flags, "--append", "--json").json["methods"]
    assert {"autoregressive", "speculative", "jacobi"} <= set(found["alone"])
    assert len(found["alone"]["jacobi"]["tokens_per_second"]) == 2
    assert "masked_diffusion" in found["left_out"] and not found["batches"][model]["differing"]

"""Measure speed and memory on this machine; beside other engines with --peers.

Alone: anyorder with its weights in each format, against the machine's limits. --peers installs
transformers, llama.cpp, OpenVINO GenAI and CTranslate2 (or those named) into environments of their
own in the cache folder, converts the same weights, and lets all take turns in one run; every side's
greedy tokens are checked against anyorder in float32, and its perplexity is told. --methods
measures every decoding method instead, and all of them in one batch.

examples:
  anyorder bench
  anyorder bench --peers llama.cpp --work decode prefill
  anyorder bench --peers --methods --output bench.json
  anyorder bench --peers --rounds 5 --append --output bench.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import TYPE_CHECKING

from anyorder.cli.files import read_text, write_text
from anyorder.cli.model_flags import DEFAULT_MODEL
from anyorder.cli.terminal import note, progress
from anyorder.core.errors import InvalidRequest, UnknownName

if TYPE_CHECKING:
    from anyorder.evaluation.benchmarks.peers import Peer
    from anyorder.evaluation.benchmarks.results import Results
    from anyorder.evaluation.benchmarks.sides import Side
    from anyorder.evaluation.benchmarks.works import Work

_MARKS = ("<!-- anyorder bench: begin -->", "<!-- anyorder bench: end -->")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to measure, and where the results go."""
    add = parser.add_argument
    add(
        "-m",
        "--model",
        default=DEFAULT_MODEL,
        metavar="MODEL",
        help=f"catalog name or .gguf file [{DEFAULT_MODEL}]",
    )
    add("--peers", nargs="*", metavar="NAME", help="beside other engines: all, or those named")
    add("--methods", action="store_true", help="every decoding method, and all in one batch")
    add("--work", nargs="+", metavar="NAME", help="only these: start, memory, decode, ... [all]")
    add("--rounds", type=int, default=5, metavar="N", help="0 prepares and checks only [5]")
    add("--threads", type=int, metavar="N", help="CPU threads of every engine [all cores]")
    add("--output", metavar="FILE", help="FILE.json; a .md and an .svg are written beside it")
    add("--append", action="store_true", help="add rounds to what is in --output")
    add("--json", action="store_true", help="print one JSON object instead of the tables")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, write; 1 if something could not be measured or differs."""
    from anyorder.evaluation.benchmarks import report
    from anyorder.evaluation.benchmarks.peers import read_peers
    from anyorder.evaluation.benchmarks.works import WORKS

    output = _output(arguments)
    if arguments.rounds < 0:
        raise InvalidRequest(f"--rounds must be at least 0, got {arguments.rounds}.")
    if arguments.threads is not None and arguments.threads < 1:
        raise InvalidRequest(f"--threads must be at least 1, got {arguments.threads}.")
    peers = read_peers()
    sides = _sides(arguments.peers, peers)
    works = _named(arguments.work, {work.name: work for work in WORKS})
    results = _open(arguments, output)
    if arguments.peers is not None or not arguments.methods:
        _compare(arguments.model, results, peers, sides, works, arguments.rounds)
    if arguments.methods:
        _methods(arguments, results)
    text = report.markdown(results)
    data = json.dumps(results.to_dict(), indent=1, ensure_ascii=False)
    print(data if arguments.json else text, end="\n" if arguments.json else "")
    if output is not None:
        from anyorder.evaluation.benchmarks.picture import picture

        write_text(output, f"{data}\n")
        write_text(output.with_suffix(".md"), _placed(text, output.with_suffix(".md")))
        if results.sides():
            write_text(output.with_suffix(".svg"), picture(results))
    failed = results.absent or any(results.figures.failures.values())
    return int(bool(failed) or any(check.differs for check in results.checks.values()))


def _output(arguments: argparse.Namespace) -> Path | None:
    if arguments.output is None:
        if arguments.append:
            raise InvalidRequest("--append adds to a file; name it with --output.")
        return None
    path = Path(arguments.output)
    if path.suffix != ".json":
        raise InvalidRequest(f"--output must end in .json, got {str(path)!r}.")
    return path


def _open(arguments: argparse.Namespace, output: Path | None) -> Results:
    """The results so far: none, or those to add to, which must be of the same model."""
    from anyorder.evaluation.benchmarks.results import Results, num_cores
    from anyorder.model import catalog
    from anyorder.model.settings import settings

    shown = progress()
    try:
        model = catalog.resolve(
            arguments.model, progress=lambda done, total: shown("downloading", done, total)
        )
    finally:
        shown.close()
    if model.kind != "gguf" and arguments.peers is not None:
        raise InvalidRequest(
            f"--peers needs a model in a GGUF file, and {arguments.model} is a folder; name a "
            ".gguf file or a model of the catalog that is one."
        )
    facts = catalog.show(arguments.model)
    threads = arguments.threads or settings().num_threads or num_cores()
    fresh = Results(model=model.name, num_parameters=facts.num_parameters or 0, threads=threads)
    if not arguments.append or output is None or not output.exists():
        return fresh
    try:
        kept = Results.from_dict(json.loads(read_text(output)))
    except json.JSONDecodeError:
        raise InvalidRequest(
            f"{output} is not JSON; leave --append out to write it anew."
        ) from None
    for name in ("model", "threads"):
        old, new = getattr(kept, name), getattr(fresh, name)
        if old != new:
            raise InvalidRequest(f"{output} is of {name} {old}, not {new}; name another --output.")
    return kept


def _compare(
    model: str,
    results: Results,
    peers: dict[str, Peer],
    sides: Seq[Side],
    works: Seq[Work],
    rounds: int,
) -> None:
    from anyorder.evaluation.benchmarks.peers import Workshop
    from anyorder.evaluation.benchmarks.session import Session
    from anyorder.model import catalog
    from anyorder.model.settings import environment_with, settings

    shown = progress()
    try:
        Session(
            model=catalog.resolve(model).path,
            workshop=Workshop(
                folder=settings().cache_folder / "peers", environment=environment_with, tell=note
            ),
            peers=peers,
            threads=results.threads,
            progress=shown,
        ).run(results, sides, works, rounds)
    finally:
        shown.close()


def _methods(arguments: argparse.Namespace, results: Results) -> None:
    import torch

    from anyorder import methods
    from anyorder.engine.engine import Engine
    from anyorder.evaluation.benchmarks.methods import measure
    from anyorder.evaluation.benchmarks.results import machine, num_cores, own_versions
    from anyorder.evaluation.benchmarks.session import openings, sample_text
    from anyorder.model.shipping import shipped_models

    results.machine = machine(num_cores())
    results.versions |= own_versions()
    torch.set_num_threads(results.threads)
    shown = progress()
    try:
        measure(
            results.methods,
            [method.name for method in methods()],
            [arguments.model, *shipped_models()],
            Engine,
            openings(sample_text()),
            rounds=arguments.rounds,
            progress=shown,
        )
    finally:
        shown.close()


def _sides(names: Seq[str] | None, peers: Mapping[str, Peer]) -> list[Side]:
    """anyorder's own, and those of the named peers; all peers if the list is empty."""
    from anyorder.evaluation.benchmarks.sides import SIDES, is_peer

    for name in names or ():
        if name not in peers:
            raise UnknownName("peer", name, peers)
    wanted = () if names is None else names or list(peers)
    return [side for side in SIDES if not is_peer(side) or side.engine in wanted]


def _named(names: Seq[str] | None, works: Mapping[str, Work]) -> list[Work]:
    for name in names or ():
        if name not in works:
            raise UnknownName("work", name, works)
    return [work for name, work in works.items() if names is None or name in names]


def _placed(text: str, file: Path) -> str:
    """What the file is to hold: between the marks if it has them, alone if it does not."""
    if not file.exists():
        return text
    before, begin, rest = read_text(file).partition(_MARKS[0])
    _, end, after = rest.partition(_MARKS[1])
    return f"{before}{begin}\n\n{text}\n{end}{after}" if end else text

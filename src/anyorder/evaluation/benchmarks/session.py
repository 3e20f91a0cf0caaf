"""A run of the comparison: prepare peers, check tokens, measure limits, go round by round."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path

from anyorder.evaluation.benchmarks import checks, rounds
from anyorder.evaluation.benchmarks.large import Shape, made
from anyorder.evaluation.benchmarks.peers import HERE, NotPrepared, Peer, Workshop
from anyorder.evaluation.benchmarks.process import WORKER, Asked, Worker, WorkerDied
from anyorder.evaluation.benchmarks.results import Results, machine, num_cores, own_versions
from anyorder.evaluation.benchmarks.sides import FORMATS, REFERENCE, Side, is_peer
from anyorder.evaluation.benchmarks.works import Work

_WINDOW, _NUM_WINDOWS = 256, 10
_PROMPT, _NUM_PROMPTS = 64, 4
_EXCERPT, _RESUMED, _NUM_EXCERPTS = 900, 120, 8
"""Characters: of a text to copy, and of its beginning that follows once more."""
_OPENING = 160


@dataclass(frozen=True, kw_only=True)
class Session:
    """Everything that a comparison needs to know."""

    model: Path
    workshop: Workshop
    peers: dict[str, Peer]
    threads: int
    progress: rounds.Progress

    def run(self, results: Results, sides: Seq[Side], works: Seq[Work], num_rounds: int) -> None:
        """Add to the results. What cannot be prepared or dies is noted there."""
        results.machine = machine(num_cores())
        results.versions |= own_versions()
        commands = self._prepare(results, sides)
        known = [side for side in sides if side.name in commands]
        shapes = [work.shape for work in works if work.shape is not None]
        folder = self.workshop.folder / "models"
        files = {shape.name: made(folder, shape, self.workshop.tell) for shape in shapes}

        def start(side: Side, work: Work | None) -> Asked:
            changes = {
                "OMP_NUM_THREADS": str(side.threads or self.threads),
                "ANYORDER_THREADS": str(side.threads or self.threads),
                "TOKENIZERS_PARALLELISM": "false",
                # pip compiled the peers' modules when it installed them; ours must not be compiled
                # again in every process.
                "PYTHONDONTWRITEBYTECODE": "",
                **side.environment,
            }
            command = commands[side.name]
            if work is not None and work.shape is not None:
                *script, _, kind, threads = command
                command = [*script, str(files[work.shape.name]), kind, threads]
            return Worker(command, self.workshop.environment(changes))

        usual = [work for work in works if work.shape is None]
        checked = [side for side in known if any(work.takes(side) for work in usual)]
        vocabulary, copied = self._check(results, checked, start)
        if num_rounds and (results.num_parameters or shapes):
            self._limits(results, shapes)
        if num_rounds:
            plan = rounds.Plan(sides=known, works=works, vocabulary=vocabulary, copied=copied)
            rounds.measure(plan, results.figures, start, rounds=num_rounds, progress=self.progress)
        if num_rounds and shapes:  # neighbours on a host may have left memory more meanwhile
            self._limits(results, shapes)

    def _prepare(self, results: Results, sides: Seq[Side]) -> dict[str, list[str]]:
        """The commands that start the sides' workers."""
        commands: dict[str, list[str]] = {}
        for side in [REFERENCE, *sides]:
            python, weights = Path(sys.executable), self.model
            results.absent.pop(side.name, None)
            try:
                if is_peer(side):
                    peer = self.peers[side.engine]
                    python = self.workshop.python(peer)
                    weights = self.workshop.weights(side, self.model, self.peers)
                    results.versions[peer.title] = peer.version()
            except NotPrepared as error:
                results.absent[side.name] = str(error)
                self.workshop.tell(f"{side.name} is left out: {error}")
                continue
            threads = str(side.threads or self.threads)
            script = [str(python), "-P", str(WORKER), side.engine]
            commands[side.name] = [*script, str(weights), side.kind, threads]
        return commands

    def _check(
        self, results: Results, sides: Seq[Side], start: rounds.Start
    ) -> tuple[int, list[list[int]]]:
        """Check what has not been; returns the size of the vocabulary and prompts whose answers
        copy from them."""
        text = sample_text()
        reference = start(REFERENCE, None)
        try:
            tokens = _encode(reference, text)
            middle = len(tokens) // _NUM_PROMPTS
            texts = checks.Texts(
                prompts=[tokens[i * middle :][:_PROMPT] for i in range(_NUM_PROMPTS)],
                windows=[tokens[i * _WINDOW :][:_WINDOW] for i in range(_NUM_WINDOWS)],
            )
            explain = checks.remembered(reference)
            for done, side in enumerate(sides):
                self.progress(f"check: {side.name}", done, len(sides))
                if side.name in results.checks:
                    continue
                worker = start(side, None)
                try:
                    results.checks[side.name] = checks.check(side, worker, explain, texts)
                except WorkerDied as error:
                    results.absent[side.name] = f"died when it was checked: {error}"
                finally:
                    worker.close()
            self.progress("checks", len(sides), len(sides))
            vocabulary: int = reference.ask({"do": "vocabulary"})["found"]
            return vocabulary, [_encode(reference, part) for part in copies(text)]
        finally:
            reference.close()

    def _limits(self, results: Results, shapes: Seq[Shape]) -> None:
        """The machine's, the best that any session saw."""
        sizes = [shape.weight_bytes(name) for shape in shapes for name in ("8-bit", "4-bit")]
        if results.num_parameters:
            sizes += map(results.weight_bytes, FORMATS)
        self.progress("limits of the machine", 0, 1)
        found = json.loads(
            subprocess.run(
                [
                    sys.executable,
                    "-P",
                    str(HERE / "limits.py"),
                    str(self.threads),
                    *map(str, sizes),
                ],
                env=self.workshop.environment({"OMP_NUM_THREADS": str(self.threads)}),
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for kind, rates in found.items():
            kept = results.limits.setdefault(kind, {})
            for name, rate in rates.items():
                kept[name] = max(rate, kept.get(name, 0.0))
        self.progress("limits of the machine", 1, 1)


def sample_text() -> str:
    """A chapter of Jane Austen's Emma."""
    return (HERE / "text.txt").read_text("utf-8")


def copies(text: str) -> list[str]:
    """Prompts that a model goes on by copying: an excerpt, and its beginning once more."""
    found = []
    for number in range(_NUM_EXCERPTS):
        at = len(text) * number // _NUM_EXCERPTS
        begins = text.index(" ", at) + 1
        excerpt = text[begins : begins + _EXCERPT]
        found.append(f"{excerpt}\n\n{excerpt[:_RESUMED]}")
    return found


def openings(text: str) -> list[str]:
    """Short prompts from all over the text."""
    return [part[:_OPENING] for part in copies(text)]


def _encode(reference: Asked, text: str) -> list[int]:
    found: list[int] = reference.ask({"do": "encode", "text": text})["found"]
    return found

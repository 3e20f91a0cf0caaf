"""What the sampler must know of a request's rows, and draft checks over several of them."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence as Seq

import torch

from anyorder.core.errors import RequestFailed
from anyorder.core.forward import Outputs, Verdict
from anyorder.engine.history import History
from anyorder.engine.run import Job
from anyorder.sampling.draws import uniform
from anyorder.sampling.guidance import above_floor, classifier_free
from anyorder.sampling.guide import GuideState
from anyorder.sampling.row import Row, RowResult
from anyorder.sampling.sampler import sample
from anyorder.sampling.verify import CannotAnswer, verify


def sampler_row(job: Job, row: int) -> Row:
    """Everything the sampler must know of one row of a request."""
    request, run, canvas = job.request, job.run, job.request.canvas
    outputs = request.outputs
    position = request.start + job.depths[row] + 1
    place = 0
    history: Seq[int] = () if canvas is None else job.canvas_history
    if canvas is not None:
        place = canvas.places[job.row_order[row]]
        position = len(run.prompt) + place
    elif outputs.token or outputs.best or outputs.accepted or outputs.distribution or outputs.draws:
        history = _history(job, row)
    return Row(
        request=request.sampling or run.request,
        outputs=outputs,
        history=history,
        num_prompt=len(run.prompt),
        draw=(run.choice, zlib.crc32((request.stream or request.role).encode()), position),
        end_tokens=run.prepared.end_tokens,
        banned=run.prepared.banned,
        forced=run.forced(position - len(run.prompt)),
        guide=run.guide if isinstance(run.guide, GuideState) else None,
        given=None if outputs.given is None else outputs.given[job.row_order[row]],
        canvas=None if canvas is None else canvas.text,
        place=place,
        length=0 if canvas is None else canvas.length or run.max_new_tokens,
        canvas_guide=run.canvas_guide if canvas is not None else None,
        blank=frozenset() if canvas is None else canvas.blank,
        cuts_off=canvas is not None and run.prepared.is_fixed_behind(place),
    )


def _history(job: Job, row: int) -> Seq[int]:
    """The tokens before what is drawn at a row: in a tree, those on its path."""
    start, tokens = job.request.start, job.sequence.tokens
    end = start + job.depths[row] + 1
    if job.depths[row] == row:
        return tokens if end >= len(tokens) else History(lambda: tokens[:end], end)

    def along_the_path() -> list[int]:
        path, at = list[int](), row
        while at >= 0:
            path.append(job.request.tokens[at])
            at = job.parents[at]
        return [*tokens[:start], *path[::-1]]

    return History(along_the_path, end)


def contrasted(
    job: Job, conditional_1V: torch.Tensor, unconditional_1V: torch.Tensor
) -> torch.Tensor:
    """Guided scores of one row."""
    request = job.run.request
    scores_1V = classifier_free(conditional_1V, unconditional_1V, request.guidance_scale)
    if request.contrast_floor:
        scores_1V = above_floor(scores_1V, conditional_1V, request.contrast_floor)
    return scores_1V


class _Judge:
    """`sampling.verify.Judge` for one job."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._rows: dict[int, Row] = {}
        self._processed: dict[int, torch.Tensor | None] = {}
        self.drawn: dict[int, RowResult] = {}
        """Draws of all rows, where the method wants them or that is faster."""
        on_device = any(logits_1V.device.type != "cpu" for logits_1V in job.held.values())
        if on_device or job.request.outputs.token:
            self._draw_all()

    def _draw_all(self) -> None:
        """All rows' draws in one call: on an accelerator, asking one by one would wait each time.
        In main memory it would only compute rows that nobody looks at."""
        places = list(self._job.request.output_rows)
        outputs = Outputs(top=self._job.request.outputs.top)
        rows = [dataclasses.replace(self._row(p), outputs=outputs) for p in places]
        logits_RV = torch.cat([self._job.held[place] for place in places])
        sources = [self._source(place) for place in places]
        processed = None
        if any(source is not None for source in sources):
            pairs = zip(sources, logits_RV, strict=True)
            processed = torch.cat([row[None] if s is None else s for s, row in pairs])
        self.drawn = dict(zip(places, sample(logits_RV, rows, processed), strict=True))

    def answer(self, place: int, outputs: Outputs, given: int | None = None) -> RowResult:
        """See Judge."""
        if outputs.token and place in self.drawn:
            return self.drawn[place]
        row = dataclasses.replace(self._row(place), outputs=outputs, given=given)
        (result,) = sample(self._job.held[place], [row], self._source(place))
        return result

    def uniform(self, place: int, purpose: str, order: int = 0) -> float:
        """See Judge."""
        choice, _, position = self._row(place).draw
        return uniform(
            self._row(place).request.seed, choice, zlib.crc32(purpose.encode()), position, order
        )

    def ends(self, token: int) -> bool:
        """See Judge."""
        return token in self._job.run.prepared.end_tokens

    def _row(self, place: int) -> Row:
        if place not in self._rows:
            self._rows[place] = sampler_row(self._job, place)
        return self._rows[place]

    def _source(self, place: int) -> torch.Tensor | None:
        """The guided scores of a place, None where nothing guides it."""
        if place not in self._processed:
            twin, source = self._job.twin, None
            if twin is not None and place >= self._job.first_contrasted_row:
                source = contrasted(self._job, self._job.held[place], twin.held[place])
            self._processed[place] = source
        return self._processed[place]


def check_draft(job: Job) -> Verdict:
    """Decide a draft whose logits are all there, and leave in the cache what was accepted.

    RequestFailed if not even the first place has a token left.
    """
    request, run = job.request, job.run
    check = request.outputs.accepted
    assert check is not None, "no draft to check"
    sampling = request.sampling or run.request
    judge = _Judge(job)
    try:
        verdict = verify(
            check,
            request.tokens,
            job.parents,
            judge,
            greedy=sampling.temperature == 0,
            top=request.outputs.top,
        )
    except CannotAnswer as error:
        raise RequestFailed(str(error)) from None
    offsets = [*range(check.first), *verdict.accepted]
    job.sequence.store.keep(job.sequence, request.start, offsets)
    if job.twin is not None:
        shift = job.twin.row_shift
        twin = job.twin.sequence
        kept = [*range(check.first + shift), *(offset + shift for offset in verdict.accepted)]
        twin.store.keep(twin, job.twin.request.start, kept)
    job.held.clear()
    job.rows = judge.drawn
    run.handle.num_checks += 1
    run.handle.num_checked += len(verdict.tokens)
    return verdict

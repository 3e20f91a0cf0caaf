"""MAUVE: how far samples are from real texts, as a trade-off between two ways of being wrong.

Pillutla et al., arXiv 2102.01454, smoothed as in arXiv 2212.14578. Texts become vectors, those of
both sides together become clusters, and each side a histogram over these, P and Q. For mixtures R
of the two, exp(-5 KL(Q || R)) falls where samples are unlike any real text and exp(-5 KL(P || R))
where real texts are unlike any sample; the area under this curve is 1 for equal histograms and near
0 for disjoint ones.

Vectors are a judge's hidden states in the middle of its layers, averaged over a text: the last
layer's last state, which the paper takes from a large judge, does not tell random word chains from
text where the judge is small. Values depend on judge, number and length of texts, and on the
clusters' number, so they compare within one table only; two halves of the real texts give the best
that can be reached in it. A few hundred texts rank models, the paper takes thousands.

Shape suffixes: R texts, F features, K clusters.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from anyorder.core.batch import dense_batch
from anyorder.core.errors import UserError
from anyorder.engine.engine import Engine

Vectors = npt.NDArray[np.float64]

_SCALE = 5.0
_NUM_MIXTURES = 25
_VARIANCE = 0.9
"""Share that the principal components keep."""
_RESTARTS = 5
_ROUNDS = 100
_TEXTS_PER_CLUSTER = 10
LEAST_TEXTS = 4 * _TEXTS_PER_CLUSTER


def mauve(first_RF: Vectors, second_RF: Vectors, *, seed: int = 0) -> float:
    """0 to 1, of two sets of texts' vectors. Equal sets give 1."""
    fewer = min(len(first_RF), len(second_RF))
    if fewer < LEAST_TEXTS // 2:
        raise UserError(
            f"MAUVE needs at least {LEAST_TEXTS // 2} texts on each side, got {fewer}; take more."
        )
    count = max(2, fewer // _TEXTS_PER_CLUSTER)
    labels = _clusters(_reduced(np.concatenate((first_RF, second_RF))), count, seed)
    first, second = labels[: len(first_RF)], labels[len(first_RF) :]
    return area(np.bincount(first, minlength=count), np.bincount(second, minlength=count))


def area(first_K: npt.NDArray[np.int64], second_K: npt.NDArray[np.int64]) -> float:
    """Under the curve of two histograms' counts, each smoothed by half a count."""
    p_K = (first_K + 0.5) / (first_K + 0.5).sum()
    q_K = (second_K + 0.5) / (second_K + 0.5).sum()
    points = [(0.0, 1.0), (1.0, 0.0)]
    for share in np.linspace(1e-6, 1 - 1e-6, _NUM_MIXTURES):
        r_K = share * p_K + (1 - share) * q_K
        apart = [float((one_K * np.log(one_K / r_K)).sum()) for one_K in (q_K, p_K)]
        points.append((float(np.exp(-_SCALE * apart[0])), float(np.exp(-_SCALE * apart[1]))))
    points.sort(key=lambda point: (point[0], -point[1]))
    x, y = np.array(points).T
    return float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum())


def vectors(
    engine: Engine,
    texts: Seq[str],
    progress: Callable[[str, int, int], None] | None = None,
) -> Vectors:
    """[R, F], of length 1: the judge's states after half of its layers, averaged over each text."""
    role, tokenizer = engine.roles["target"], engine.tokenizer
    assert tokenizer is not None, "a judge reads text"
    found = []
    for done, text in enumerate(texts, 1):
        # An empty text is read as a single token, so that all empty ones are alike.
        tokens = tokenizer.encode(text)[: engine.abilities.context_length] or [0]
        batch = dense_batch(torch.tensor([tokens], device=role.network.device))
        with torch.inference_mode():
            half = replace(batch, num_layers=max(engine.abilities.num_layers // 2, 1))
            mean_F = role.network.hidden(half, None).double().mean(0)
        found.append((mean_F / mean_F.norm()).cpu().numpy())
        if progress is not None:
            progress("reading samples", done, len(texts))
    return np.stack(found)


def _reduced(vectors_RF: Vectors) -> Vectors:
    """Their principal components, as many as it takes."""
    centred_RF = vectors_RF - vectors_RF.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred_RF, full_matrices=False)
    kept = np.searchsorted(np.cumsum(sizes**2), _VARIANCE * (sizes**2).sum()) + 1
    return np.asarray(left[:, :kept] * sizes[:kept], dtype=np.float64)


def _clusters(vectors_RF: Vectors, count: int, seed: int) -> npt.NDArray[np.int64]:
    """Cluster of each vector: Lloyd's algorithm from k-means++ starts, the tightest of several."""
    rng = np.random.default_rng(seed)
    tightest, best_R = np.inf, np.zeros(len(vectors_RF), np.int64)
    for _ in range(_RESTARTS):
        centres_KF = _starts(vectors_RF, count, rng)
        labels_R = np.full(len(vectors_RF), -1)
        for _ in range(_ROUNDS):
            distances_RK = _distances(vectors_RF, centres_KF)
            new_R = distances_RK.argmin(axis=1)
            if (new_R == labels_R).all():
                break
            labels_R = new_R
            for cluster in np.unique(labels_R):
                centres_KF[cluster] = vectors_RF[labels_R == cluster].mean(axis=0)
        spread = float(_distances(vectors_RF, centres_KF).min(axis=1).sum())
        if spread < tightest:
            tightest, best_R = spread, labels_R
    return best_R


def _starts(vectors_RF: Vectors, count: int, rng: np.random.Generator) -> Vectors:
    """Each centre is drawn with a probability that grows with the distance to those before it."""
    centres = [vectors_RF[rng.integers(len(vectors_RF))]]
    while len(centres) < count:
        weights_R = _distances(vectors_RF, np.stack(centres)).min(axis=1)
        total = weights_R.sum()
        chances_R = weights_R / total if total else np.full(len(vectors_RF), 1 / len(vectors_RF))
        centres.append(vectors_RF[rng.choice(len(vectors_RF), p=chances_R)])
    return np.stack(centres)


def _distances(vectors_RF: Vectors, centres_KF: Vectors) -> Vectors:
    """Squared."""
    return np.asarray(((vectors_RF[:, None] - centres_KF) ** 2).sum(axis=-1))

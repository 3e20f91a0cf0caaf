"""Learning-rate schedules: a factor from 0 to 1 for every step, a function of the step alone.

cosine: Loshchilov and Hutter, arXiv 1608.03983, without restarts. wsd (warm-up, stable, decay): Hu
et al., arXiv 2404.06395, with a linear decay. noam: Vaswani et al., arXiv 1706.03762, scaled so
that its highest value is 1 whatever the width.
"""

from __future__ import annotations

import math

from anyorder.training.sections import ScheduleRecipe


def factor(schedule: ScheduleRecipe, step: int, num_steps: int) -> float:
    """What the learning rate is multiplied by in step 1, 2, ... `num_steps`."""
    warmup = schedule.warmup
    if step < warmup:
        return step / warmup
    if schedule.name == "noam":
        return math.sqrt(warmup / step)
    fall = 1.0 - schedule.final
    if schedule.name == "cosine":
        done = (step - warmup) / max(num_steps - warmup, 1)
        return schedule.final + fall * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))
    if schedule.name == "wsd":
        length = schedule.decay * num_steps
        return 1.0 - fall * max(step - (num_steps - length), 0.0) / max(length, 1.0)
    return 1.0

"""What a ratio of medians shows, and what it does not."""

import random
import statistics

ROUNDS = 5  # fewer show nothing
RESAMPLES = 2000


def interval(mine, others):
    """95% bootstrap interval of median(mine) / median(others), [low, high]; None after too few rounds, or with a 0.

    Rounds of both sides alternate, so what disturbs one disturbs its neighbour: they are drawn in pairs.
    """
    rounds = len(mine)
    if rounds < ROUNDS:
        return None
    draw = random.Random(1)
    ratios = []
    for _ in range(RESAMPLES):
        chosen = [draw.randrange(rounds) for _ in range(rounds)]
        below = statistics.median(others[i] for i in chosen)
        if below > 0:
            ratios.append(statistics.median(mine[i] for i in chosen) / below)
    if len(ratios) < RESAMPLES:
        return None
    ratios.sort()
    return [ratios[int(0.025 * RESAMPLES)], ratios[int(0.975 * RESAMPLES) - 1]]


def word(ratios, better):
    """better, worse or neither, which is what an interval around 1 shows."""
    low, high = ratios
    if low <= 1 <= high:
        return "no difference shown"
    return "better" if (high < 1) == (better == "lower") else "worse"


def words(ratios, ratios_best, better):
    if ratios is None or ratios_best is None:
        return f"nothing shown: fewer than {ROUNDS} rounds, or a figure of 0"

    def against(name, found):
        return f"{word(found, better)} ({found[0]:.3g} to {found[1]:.3g} times {name})"

    return against("the kernel", ratios) + "; " + against("its best", ratios_best)

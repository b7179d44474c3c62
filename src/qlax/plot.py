"""Learning curves."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure


def learning_curve(path: Path, curves: dict[str, np.ndarray], labels: list[str], title: str) -> None:
    """Draw the returns against the steps of a run: a line a setting, shaded from its least to its best seed.

    Args:
      path: of the picture; its suffix chooses the format.
      curves: `steps [lines]`, `episode_return` and `eval_return` `[lines, R]`, nan where there is no value.
      labels: of each run, R; runs with the same label are seeds of one setting.
      title: above the picture.
    """
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")  # not pyplot: a notebook keeps its own backend
    axes = figure.subplots()
    for index, label in enumerate(dict.fromkeys(labels)):
        of_setting = np.array([other == label for other in labels])
        for name, style, kind in (("eval_return", "-", "greedy"), ("episode_return", ":", "exploring")):
            steps, returns = curves["steps"], curves[name][:, of_setting]
            known = np.isfinite(returns).any(axis=1)  # a run that diverged has none, the others beside it go on
            steps, returns = steps[known], returns[known]
            text = ", ".join(part for part in (label, kind) if part)
            mean, color = np.nanmean(returns, axis=1), f"C{index % 10}"
            axes.plot(steps, mean, style, color=color, label=text, marker="." if len(steps) < 2 else None)
            axes.fill_between(
                steps, np.nanmin(returns, axis=1), np.nanmax(returns, axis=1), color=color, alpha=0.15, lw=0
            )
    axes.set(title=title, xlabel="environment steps", ylabel="episode return")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)

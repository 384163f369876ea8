"""Draws metrics of finished runs side by side, one panel each.

python scripts/plot_curves.py docs/learning.png runs/ppo-1/metrics.jsonl:reward_mean runs/sft-1/evaluations.jsonl:loss
"""

import argparse
import json
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def curve(file: Path, metric: str) -> list[tuple[float, float]]:
    """(episode, or finished episodes of an evaluation, value) of every line that has the metric."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [(row.get("episode", row.get("finished_episodes")), row[metric]) for row in rows if metric in row]


def main() -> None:
    """Writes the picture."""
    parser = argparse.ArgumentParser(description="Draws metrics of finished runs, one panel each.")
    parser.add_argument("picture", type=Path)
    parser.add_argument("curves", nargs="+", metavar="FILE:METRIC", help="a file of a run, and a metric in it")
    arguments = parser.parse_args()
    figure = Figure(figsize=(3.6 * len(arguments.curves), 3), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(arguments.curves), squeeze=False)[0]
    for axes, text in zip(panels, arguments.curves, strict=True):
        file, _, metric = text.rpartition(":")
        evaluated = "held-out " if Path(file).name == "evaluations.jsonl" else ""
        axes.plot(*zip(*curve(Path(file), metric), strict=True), marker="o", markersize=3, color="#2563eb")
        axes.set(title=f"{Path(file).parent.name}: {evaluated}{metric}", xlabel="episode")
        axes.grid(alpha=0.3)
    figure.savefig(arguments.picture, dpi=80)


if __name__ == "__main__":
    main()

"""The Pareto front of a search as a picture."""

from collections.abc import Sequence
from pathlib import Path

from flatlm.convert.atomic_file import atomic_output
from flatlm.generative.reporting.svg import require_plots
from flatlm.generative.tune import Candidate
from flatlm.quantize.knapsack import Choice

SUFFIXES = (".svg", ".png")


def plot_front(path: Path, choices: Sequence[Choice], candidates: Sequence[Candidate], best: Candidate) -> None:
    """Predicted KL over the weights' size, and what the files of the candidates measured, to an .svg or .png file."""
    require_plots()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.step(
        [c.size / 1e6 for c in choices], [c.cost for c in choices], where="post", label="predicted: sensitivities added up", color="0.5"
    )
    others = [c for c in candidates if c.recipe.rules != best.recipe.rules]
    axes.plot([c.weight_bytes / 1e6 for c in others], [c.mean_kl for c in others], "o", label="measured on the exported file")
    axes.plot([best.weight_bytes / 1e6], [best.mean_kl], "*", markersize=14, label="chosen")
    axes.set(xlabel="weights and scales, MB", ylabel="KL from the checkpoint, nats", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_output(path) as temporary:
        figure.savefig(temporary, format=path.suffix.removeprefix("."))

"""How an export is proved: the file is run against its checkpoint before it gets its name. Importing this loads nothing heavy."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatlm.errors import VerificationFailed
from flatlm.progress import Progress

if TYPE_CHECKING:
    from flatlm.utilities.exporter import ExportRequest, Prove

_FIGURES = (
    ("mean_kl", "mean KL", ".2e"),
    ("top1_agreement", "top-1 agreement", ".4f"),
    ("mean_cosine", "mean cosine", ".6f"),
    ("squared_error", "relative squared error", ".2e"),
)
WRITE_ALL_THE_SAME = "write it all the same with --no-verify"


def prover(
    request: "ExportRequest",
    *,
    tokens: int | None = None,
    progress: Progress | None = None,
    way_out: str = WRITE_ALL_THE_SAME,
) -> "Prove":
    """What runs a file against the request's checkpoint, and raises VerificationFailed, with the `report`, where it is too far off.

    `tokens`: compare at least so many (256). `way_out`: what the error advises beside another recipe.
    """

    def prove(path: Path) -> Mapping[str, Any]:
        from flatlm.generative import verify as judge

        more: dict[str, Any] = {"tokens": tokens or judge.DEFAULT_TOKENS, "progress": progress}
        report = judge.verify(path, request.checkpoint, lora=request.lora, reading=request.reading, **more)
        if not report.passed:
            error = VerificationFailed(
                f"{request.output} was not written: with recipe {request.recipe.name} the file is too far from {report.against} "
                f"({describe_verification(report.to_dict())}). Choose another recipe, or {way_out}"
            )
            error.report = report.to_dict()  # type: ignore[attr-defined]
            raise error
        return report.to_dict()

    return prove


def describe_verification(verification: Mapping[str, Any]) -> str:
    """A line of what `VerificationReport.to_dict` holds."""
    found = [
        f"{verification['tokens_compared']} tokens against {verification['against']}: max abs error {verification['max_abs_error']:.2e}",
        *(f"{what} {verification[key]:{form}}" for key, what, form in _FIGURES if verification.get(key) is not None),
    ]
    if verification["greedy_tokens"] is not None:
        found.append(f"greedy text equal for {verification['greedy_tokens_equal']} of {verification['greedy_tokens']} tokens")
    return ", ".join(found)

"""What a CRF behind a token head is trained by: the negative logarithm of the true path's probability (Lafferty et al. 2001)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from flatlm.errors import ConfigError
from flatlm.tasks.forward import IGNORED_LABEL


def crf_loss(crf: Mapping[str, Tensor], emissions: Tensor, labels: Tensor) -> Tensor:
    """The mean over texts, for emissions [B, T, L] and labels [B, T], of which IGNORED_LABEL ends a text.

    `crf`: the checkpoint's tensors by name, pytorch-crf's (whose `reduction="mean"`, negated, this is) or FlagAI's. Raises ConfigError for
    labels that the CRF does not have, and for a text whose first token has none.
    """
    parts = {name.rpartition(".")[2]: tensor.to(emissions.dtype) for name, tensor in crf.items()}
    transitions = parts["trans"] if "trans" in parts else parts["transitions"]
    none = torch.zeros(len(transitions), dtype=emissions.dtype)
    start, end = parts.get("start_transitions", none), parts.get("end_transitions", none)
    labels = torch.as_tensor(labels).long()
    counted = (labels != IGNORED_LABEL).cumprod(-1).bool()
    shaped = labels.shape == emissions.shape[:2] and bool(counted[:, 0].all())
    if not shaped or int(labels[counted].min()) < 0 or int(labels[counted].max()) >= len(transitions):
        raise ConfigError(
            f"labels of a CRF are 0 to {len(transitions) - 1}, one for each token from the first on: {list(emissions.shape[:2])}"
        )
    losses = [_text_loss(emissions[i, own], labels[i, own], transitions, start, end) for i, own in enumerate(counted)]
    return torch.stack(losses).mean()


def blank_crf(labels: int) -> dict[str, Tensor]:
    """One that has learnt nothing: every path over so many labels is as good as any, by pytorch-crf's names."""
    none = torch.zeros(labels)
    return {"crf.transitions": torch.zeros(labels, labels), "crf.start_transitions": none, "crf.end_transitions": none.clone()}


def _text_loss(emissions: Tensor, labels: Tensor, transitions: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """The logarithm of the sum over all paths of e^score, less the score of this one; emissions [T, L], labels [T]."""
    score = start[labels[0]] + emissions.gather(1, labels[:, None]).sum() + transitions[labels[:-1], labels[1:]].sum() + end[labels[-1]]
    paths = start + emissions[0]
    for step in emissions[1:]:
        paths = torch.logsumexp(paths[:, None] + transitions, 0) + step
    return torch.logsumexp(paths + end, 0) - score

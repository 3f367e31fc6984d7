"""Makes `lm_eval --model flatlm` known to lm-evaluation-harness.

The harness (0.4.11 to 0.4.13) looks for no plug-ins of models; but it imports torch after itself and before it looks for the model, and
torch calls the entry points of the group `torch.backends`. FlatLM's own, `register`, does nothing in any other program.
"""

import sys


def register() -> None:
    """Add the model's name to the harness's registry, where the harness is being imported. Nothing heavy is loaded, nothing raised."""
    if "lm_eval" not in sys.modules:
        return
    try:
        import lm_eval.models  # noqa: F401 - fills the registry, which otherwise is taken to be filled by the first name in it
        from lm_eval.api.registry import model_registry

        if "flatlm" not in model_registry:
            model_registry.register("flatlm", target="flatlm.generative.harness.model:FlatlmLM")
    except Exception:  # an lm_eval of another version: torch, which calls this, must not fail for it
        return

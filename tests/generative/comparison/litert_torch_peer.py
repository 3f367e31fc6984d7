"""Run as a script: litert-torch's own tiny Llama, exported by its own converter with the mask as an input, and what torch computes.

    PYTHONPATH=STAND_IN python litert_torch_peer.py DIRECTORY

Writes DIRECTORY/*.tflite, whose caches are [1, S, K, H], and DIRECTORY/expected.npz: `ids` [n] and the `logits` [n, V] after each.
"""

import sys
from pathlib import Path

import numpy as np
import torch

SLOTS, PREFILL = 48, 8


def stand_in(directory: Path) -> Path:
    """A folder in which litert-torch finds the one module that it imports from TensorFlow, a schema that ai-edge-litert has too."""
    package = directory / "tensorflow" / "lite" / "python"
    package.mkdir(parents=True)
    for folder in (package, package.parent, package.parents[1]):
        (folder / "__init__.py").touch()
    (package / "schema_py_generated.py").write_text("from ai_edge_litert.schema_py_generated import *\n")
    return directory


def main(directory: Path) -> None:
    from litert_torch.generative.examples.tiny_llama import tiny_llama
    from litert_torch.generative.layers import kv_cache
    from litert_torch.generative.utilities import converter
    from litert_torch.generative.utilities.export_config import ExportConfig

    torch.manual_seed(0)
    config = tiny_llama.get_fake_model_config()
    config.embedding_dim = 32
    heads = config.block_config(0).attn_config
    heads.num_heads, heads.num_query_groups, heads.head_dim = 4, 2, 8
    model = tiny_llama.TinyLlama(config, mask_cache_size=0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
        ids = torch.randint(0, model.config.vocab_size, (1, 20))
        mask = torch.full((20, SLOTS), float("-inf")).triu(1)[None, None]
        caches = kv_cache.KVCache.from_model_config(SLOTS, model.config)
        logits = model(ids, torch.arange(20, dtype=torch.int), caches, mask=mask)["logits"]
    np.savez(directory / "expected.npz", ids=ids[0].numpy(), logits=logits[0].numpy())
    converter.convert_to_tflite(
        model, str(directory), "peer", PREFILL, SLOTS, quantize="none", export_config=ExportConfig(mask_as_input=True)
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))

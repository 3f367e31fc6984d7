"""Models written as a flow of operators over named data and named weights, in one Python file, as fastllm's custom models are.

calls.py records what `build` asks for; flow.py checks it against the checkpoint's shapes; merge.py makes fewer and larger products of it;
segments.py finds the layers that repeat; model.py runs what came out, and graph.py compiles it. docs/custom_models.md is the manual.
"""

from flatlm.authoring.compute_graph.calls import ComputeGraph

__all__ = ["ComputeGraph"]

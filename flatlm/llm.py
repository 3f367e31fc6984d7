"""Where fastllm's custom models find `ComputeGraph`: of `from ftllm.llm import ComputeGraph` only the package's name changes."""

from flatlm.authoring.compute_graph import ComputeGraph

__all__ = ["ComputeGraph"]

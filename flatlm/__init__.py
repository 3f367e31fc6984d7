"""FlatLM: language-model checkpoints to verified, statically shaped flatbuffers for on-device runtimes."""

__version__ = "0.1.0"

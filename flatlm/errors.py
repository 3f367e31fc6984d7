"""Every error that a user's input can cause. Each message names the file, tensor or key, and the way out.

They live below every folder, so that layers, recipes and the linker raise the same kinds as the command line reports.
"""


class FlatlmError(Exception):
    """Base of all of them: bad input or a bad environment, never a bug in FlatLM. The command line exits with 2."""


class CheckpointError(FlatlmError):
    """A checkpoint's files are missing, truncated, corrupt, unsafe, or hold values that cannot be exported."""


class ConfigError(FlatlmError):
    """A model configuration is unreadable, unsupported, or has a key that would change the numbers and was not read."""


class CustomModelError(FlatlmError):
    """A file with a user's own model cannot be loaded, or what it describes cannot be, with this checkpoint."""


class RecipeError(FlatlmError):
    """A quantization recipe is unknown, or does not fit a weight's shape."""


class ExportError(FlatlmError):
    """The export that was asked for is impossible, such as a prefill longer than the cache."""


class OutputError(FlatlmError):
    """An output file cannot be written: a path, its permissions, or a full disk."""


class TokenizerError(FlatlmError):
    """A tokenizer is missing, unreadable, or of a kind that is not supported."""


class TextError(FlatlmError):
    """A text to evaluate or calibrate on is unreadable, empty, too short, or tokenized for another model."""


class RuntimeFileError(FlatlmError):
    """An exported file cannot be run as asked: not a model, a missing signature, a prompt that does not fit."""


class TargetError(FlatlmError):
    """A machine to measure on cannot be reached, refuses, lacks space or a program, is of another kind, or went away."""


class SweepError(FlatlmError):
    """A sweep's file has mistakes, its folder is in use, or the cluster that is to run it is not fit for it."""


class VerificationFailed(Exception):  # noqa: N818 - a result, not a fault of the input
    """An exported file's outputs are further from the reference than its recipe allows. The command line exits with 1."""

"""What `python -m flatlm.examples.<family>` does: `flatlm export` with the flags that converter scripts are known by."""

import sys

from absl import app, flags

from flatlm.commands.base import run_verb

_CHECKPOINT = flags.DEFINE_string("checkpoint_path", None, "Directory with config.json, weights, tokenizer; or .gguf file.", required=True)
_OUTPUT = flags.DEFINE_string("output_path", None, "File to write: .tflite or .litertlm.", required=True)
_PREFILL = flags.DEFINE_multi_integer("prefill_seq_len", [512], "Length of a prefill signature; may be given several times.")
_CACHE = flags.DEFINE_integer("kv_cache_max_len", None, "Slots of the KV cache (1024, or the model's context if shorter).")
_QUANTIZE = flags.DEFINE_string("quantize", "dynamic_int8", "Quantization recipe; flatlm recipes lists them.")
_VERIFY = flags.DEFINE_bool("verify", True, "Run the written file against the reference.")


def main(summary: str | None) -> None:
    """Parse the script's flags, export, and leave with the command's exit status."""

    def run(unused: list[str]) -> None:
        arguments = [_CHECKPOINT.value, "-o", _OUTPUT.value, "--recipe", _QUANTIZE.value]
        arguments += ["--prefill", ",".join(map(str, _PREFILL.value))]
        arguments += [] if _CACHE.value is None else ["--kv-cache-len", str(_CACHE.value)]
        sys.exit(run_verb("export", "convert a checkpoint", arguments + ([] if _VERIFY.value else ["--no-verify"])))

    sys.modules["__main__"].__doc__ = summary  # what --help shows, beside these flags
    for holder in (_CHECKPOINT, _OUTPUT, _PREFILL, _CACHE, _QUANTIZE, _VERIFY):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[holder.name])
    app.run(run)

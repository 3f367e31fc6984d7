"""The tokenizer that belongs to an exported file."""

from pathlib import Path

from flatlm.errors import TokenizerError
from flatlm.generative.inspect import read_manifest
from flatlm.utilities.bundling import bundled_tokenizer
from flatlm.utilities.tokenizing.tokenizer import Tokenizer


def file_tokenizer(file: Path, directory: Path | None, checkpoint: Path | None = None) -> Tokenizer:
    """The tokenizer from a directory, else the bundle's own, else the checkpoint's.

    Raises TokenizerError where there is none, or where it gives other ids than the one that the file was exported with.
    """
    if directory is None and file.suffix == ".litertlm":
        return bundled_tokenizer(file)
    if (source := directory or checkpoint) is None:
        raise TokenizerError(f"{file} has no tokenizer of its own: give its directory with --tokenizer DIR, or export to .litertlm")
    tokenizer = Tokenizer.load(source)
    expected = read_manifest(file).get("tokenizer")
    if expected is not None and expected != tokenizer.probe():
        wrong = f"{tokenizer.source} is the wrong tokenizer: it gives other ids than the one that {file} was exported with"
        if tokenizer.settings.cpm:
            wrong += "; it cuts words first, by jieba or rjieba where one is installed: install it or remove it, as it was then"
        raise TokenizerError(wrong)
    return tokenizer

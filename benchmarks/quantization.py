"""What quantization costs in quality: FlatLM's recipes and other tools, at the same bits, by KL from the reference on a text.

    python -m benchmarks.quantization --model NAME CHECKPOINT TEXT [--model ...] [--tokens 4000] [--ggml LIBRARY] [--only PATTERN]

TEXT is a list of documents (.json or .jsonl): the first half (--split) is calibration text, the rest is evaluated on, at most --tokens of
it. Bits per weight count matrices and their scales. Figures go to --out as each is known; what is there of the same checkpoint and text
is not measured again, unless --again names it. --ggml: ggml's shared library (libggml-base.so, such as comes in pywhispercpp's wheel),
for the K types. Prints a Markdown table for each model.
"""

import argparse
import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.quantization_peers import (
    EDGE_RUNS,
    GGML_RUNS,
    EdgeRun,
    Ggml,
    GgmlRun,
    NotPossible,
    Requantized,
    edge_quantized,
    generic_file,
    matrices,
    versions,
)
from flatlm.convert.atomic_file import atomic_output
from flatlm.errors import FlatlmError
from flatlm.generative.evaluation.evaluate import encoded, measure, text_pieces
from flatlm.generative.evaluation.scoring import RunningFile, chunk_length
from flatlm.generative.reference import Reference, open_reference
from flatlm.generative.runner import Runner
from flatlm.quantize.method import Method
from flatlm.quantize.recipes import RECIPES, Recipe
from flatlm.utilities.checkpoints.open import open_checkpoint
from flatlm.utilities.documents import Piece, read_documents
from flatlm.utilities.example import build_model
from flatlm.utilities.exporter import ExportRequest, export
from flatlm.utilities.tokenizing.tokenizer import Tokenizer

PREFILL = 128
CONTEXT = 512
Figures = dict[str, Any]
METHODS = {
    ("dynamic_int4_block32", "half-quadratic"): Method("half_quadratic"),
    ("dynamic_int4_channel", "half-quadratic"): Method("half_quadratic"),
    ("dynamic_int4_channel", "AWQ alone"): Method("scale_search", migrate=True),
    ("calibrated_int4_channel", "with AWQ"): Method("gptq", migrate=True),
    ("calibrated_int4_channel", "rotated"): Method("gptq", rotate=True),
    ("calibrated_int4_block32", "with AWQ"): Method("gptq", migrate=True),
    ("calibrated_int4_block32", "rotated"): Method("gptq", rotate=True),
    ("static_int8", "SmoothQuant 0.5"): Method(smooth=0.5),
    ("static_int8", "rotated"): Method(rotate=True),
}
"""Other methods for the same bits, by recipe."""


@dataclass(frozen=True)
class Case:
    """A model, its text in two parts, and a folder to write files into."""

    name: str
    checkpoint: Path
    documents: tuple[str, ...]
    split: float
    tokens: int
    work: Path
    ggml: Ggml

    @cached_property
    def calibration_documents(self) -> list[str]:
        return list(self.documents[: int(len(self.documents) * self.split)])

    @cached_property
    def calibration_file(self) -> Path:
        path = self.work / "calibration.json"
        path.write_text(json.dumps(self.calibration_documents))
        return path

    @cached_property
    def model(self) -> Any:
        return build_model(self.checkpoint, kv_cache_max_len=CONTEXT)

    @cached_property
    def weights(self) -> int:
        """Numbers in matrices."""
        return sum(rows.numel() for _, rows, _, _ in matrices(self.model))

    @cached_property
    def evaluation(self) -> list[Piece]:
        return self._pieces(self.documents[len(self.calibration_documents) :], self.model.geometry.length)

    @cached_property
    def calibration(self) -> list[Piece]:
        """Of the prefill's length each, as many tokens as are evaluated on."""
        return self._pieces(self.calibration_documents, PREFILL)

    @cached_property
    def reference(self) -> Reference:
        return open_reference(self.checkpoint, length=self.model.geometry.length)

    @cached_property
    def generic(self) -> Path:
        """The float32 file that the peers quantize."""
        return generic_file(self.checkpoint, self.work / "generic.tflite", length=self.model.geometry.length, prefill=PREFILL)

    def _pieces(self, documents: Any, length: int) -> list[Piece]:
        vocabulary = self.model.config.vocab_size
        ids = encoded(documents, Tokenizer.load(self.checkpoint), vocab_size=vocabulary)
        return text_pieces(ids, length, length // 2, max_tokens=self.tokens)

    def facts(self) -> Figures:
        """What figures depend on: those of another checkpoint or text are dropped."""
        with open_checkpoint(self.checkpoint) as store:
            digest = hashlib.sha256("\0".join(self.documents).encode()).hexdigest()[:16]
            tokens = sum(piece.scored for piece in self.evaluation)
            text = {"sha256": digest, "documents": len(self.documents), "split": self.split, "tokens": tokens}
            return {"checkpoint": store.fingerprint(), "matrix_weights": self.weights, "text": text}


def entries() -> Iterator[tuple[str, Callable[[Case], Figures]]]:
    """Every line of the table: its label, and what measures it."""
    for recipe in RECIPES.values():
        yield f"flatlm {recipe.name}", partial(ours, recipe=recipe)
    for (name, words), method in METHODS.items():
        yield f"flatlm {name}, {words}", partial(ours, recipe=replace(RECIPES[name], method=method))
    for edge in EDGE_RUNS:
        yield edge.label, partial(by_edge_quantizer, run=edge)
    for ggml in GGML_RUNS:
        yield ggml.label, partial(by_ggml, run=ggml)


def ours(case: Case, *, recipe: Recipe) -> Figures:
    """A calibrated recipe gets the calibration part of the text, in a file."""
    file = case.work / "ours.tflite"
    length = case.model.geometry.length
    export(ExportRequest(case.checkpoint, file, recipe, (PREFILL,), length, prefill_logits=True, calibration=case.calibration_file))
    return of_file(file, case)


def by_edge_quantizer(case: Case, *, run: EdgeRun) -> Figures:
    file = case.work / "theirs.tflite"
    return of_file(edge_quantized(case.generic, file, run, case.calibration), case)


def by_ggml(case: Case, *, run: GgmlRun) -> Figures:
    eager = Requantized(case.checkpoint, run, case.ggml, length=case.model.geometry.length, calibration=case.calibration)
    report = measure(eager, case.evaluation, reference=case.reference)
    return {"bits_per_weight": 8 * eager.bytes / case.weights, **report.to_dict(), **({"note": eager.note} if eager.note else {})}


def of_file(file: Path, case: Case) -> Figures:
    """The file's size, and its figures in the runtime."""
    size = {"bytes": file.stat().st_size, "bits_per_weight": 8 * stored_weights(file) / case.weights}
    with Runner.open(file) as runner:
        report = measure(RunningFile(runner), case.evaluation, reference=case.reference, chunk=chunk_length(runner))
    return size | report.to_dict()


def stored_weights(file: Path) -> int:
    """Bytes of the constants that FULLY_CONNECTED and EMBEDDING_LOOKUP take (or DEQUANTIZE before them) and of their scales, each once."""
    from ai_edge_litert import schema_py_generated as schema

    operators = schema.BuiltinOperator
    taken = {operators.FULLY_CONNECTED: 1, operators.EMBEDDING_LOOKUP: 1, operators.DEQUANTIZE: 0}
    model = schema.Model.GetRootAsModel(file.read_bytes(), 0)

    def held(buffer: Any) -> int:
        return int(buffer.Size() if buffer.Offset() > 1 else buffer.DataLength())

    sizes: dict[int, int] = {}
    for graph in map(model.Subgraphs, range(model.SubgraphsLength())):
        for operator in map(graph.Operators, range(graph.OperatorsLength())):
            place = taken.get(model.OperatorCodes(operator.OpcodeIndex()).BuiltinCode())
            if place is None:
                continue
            tensor = graph.Tensors(operator.Inputs(place))
            if not (size := held(model.Buffers(tensor.Buffer()))):
                continue
            quantization = tensor.Quantization()
            if quantization is not None and quantization.DetailsType() == schema.QuantizationDetails.BlockwiseQuantization:
                details = schema.BlockwiseQuantization()
                details.Init(quantization.Details().Bytes, quantization.Details().Pos)
                size += held(model.Buffers(graph.Tensors(details.Scales()).Buffer()))
            elif quantization is not None:
                size += 4 * quantization.ScaleLength()
            sizes[tensor.Buffer()] = size
    return sum(sizes.values())


def table(name: str, model: Mapping[str, Any]) -> str:
    """Markdown."""
    known = [entry for entry in model["entries"].values() if "mean_kl" in entry]
    perplexity = f", its perplexity {known[0]['reference_perplexity']:.3f}" if known else ""
    lines = [f"### {name}: {model['matrix_weights'] / 1e6:.2f} M weights, {model['text']['tokens']} tokens{perplexity}", ""]
    lines += ["| what | bits per weight | file, MB | mean KL, nats | perplexity | top-1 | |", "| --- " * 7 + "|"]
    for label, entry in model["entries"].items():
        if "skipped" in entry:
            lines.append(f"| {label} | - | - | - | - | - | {entry['skipped']} |")
            continue
        size = f"{entry['bytes'] / 1e6:.2f}" if "bytes" in entry else "-"
        figures = f"{entry['bits_per_weight']:.2f} | {size} | {entry['mean_kl']:.6f} | {entry['perplexity']:.3f}"
        lines.append(f"| {label} | {figures} | {entry['top1_agreement']:.4f} | {entry.get('note', '')} |")
    return "\n".join(lines) + "\n"


def measured(case: Case, label: str, work: Callable[[Case], Figures]) -> Figures:
    begun = time.perf_counter()
    try:
        figures = work(case)
    except (FlatlmError, NotPossible) as error:
        figures = {"skipped": str(error).splitlines()[0].replace(f"{case.work}/", "")}
    print(f"{case.name}: {label}: {figures.get('mean_kl', figures.get('skipped'))}", flush=True)
    return figures | {"seconds": round(time.perf_counter() - begun, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs=3, action="append", required=True, metavar=("NAME", "CHECKPOINT", "TEXT"))
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--split", type=float, default=0.5, help="the share of the documents that is calibration text")
    parser.add_argument("--ggml", type=Path, metavar="LIBRARY")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="labels to measure, as a shell pattern")
    parser.add_argument("--again", default="", metavar="PATTERN", help="labels to measure although their figures are there")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: Figures = json.loads(args.out.read_text()) if args.out.exists() else {"models": {}}
    tools = {name: version(name) for name in ("torch", "transformers", "litert-torch", "ai-edge-litert")}
    results["machine"] = {"cores": os.cpu_count(), "machine": platform.machine(), **tools, **versions()}
    for name, checkpoint, text in args.model:
        with tempfile.TemporaryDirectory() as work:
            documents = tuple(read_documents(Path(text)))
            case = Case(name, Path(checkpoint), documents, args.split, args.tokens, Path(work), Ggml(args.ggml))
            facts, old = case.facts(), results["models"].get(name, {})
            same = old and all(old.get(key) == value for key, value in facts.items())
            done = old["entries"] if same else {}
            results["models"][name] = facts | {"entries": {}}
            for label, measurement in entries():
                wanted = fnmatchcase(label, args.only) and (label not in done or fnmatchcase(label, args.again))
                if wanted:
                    done[label] = measured(case, label, measurement)
                results["models"][name]["entries"] = {each: done[each] for each, _ in entries() if each in done}
                if wanted:
                    with atomic_output(args.out) as temporary:
                        temporary.write_text(json.dumps(results, indent=1) + "\n")
        print(f"\n{table(name, results['models'][name])}")


if __name__ == "__main__":
    main()

"""What one exported file is: its model card, signatures, recipe, sizes, operators, layers."""

from collections.abc import Mapping
from typing import Any

from flatlm.generative.reporting.collect import Subject, at, named
from flatlm.generative.reporting.document import NOT_KNOWN, Block, Cell, Folded, Kind, Paragraph, Table
from flatlm.generative.reporting.figures import cell, count, figures, number, printable, text_cell


def model_name(subject: Subject) -> str:
    """The family, and how many parameters."""
    parameters = number(subject.manifest.get("parameters"))
    size = f" of {count(parameters)}" if parameters is not None else ""
    return f"{subject.family}{size}" if subject.family else "of another tool" if subject.inspection else "not known"


def folded(subject: Subject, *, shown: bool) -> Folded:
    """All of it; `shown`: opened at first."""
    blocks: list[Block] = []
    if subject.problem:
        blocks.append(Paragraph(f"The file could not be read: {subject.problem}"))
    blocks += [_card(subject), *_recipe(subject), *_sizes(subject), *_signatures(subject), *_census(subject), *_layers(subject)]
    return Folded(f"{subject.number}. {subject.name}", subject.anchor, tuple(blocks), shown)


def bound(value: object) -> str | None:
    """What a verification had to keep to, in words."""
    limits = ((" max error ", "≤", "max_abs_error"), ("KL ", "≤", "mean_kl"), ("top-1 ", "≥", "top1_agreement"))
    found = [f"{name.strip()} {sign} {figures(limit)}" for name, sign, key in limits if (limit := number(at(value, key))) is not None]
    return ", ".join(found) if found else "none" if isinstance(value, Mapping) else None


def _card(subject: Subject) -> Table:
    manifest = subject.manifest
    versions, lora, calibration = (manifest.get(key) for key in ("versions", "lora", "calibration"))
    signatures = manifest.get("signatures")
    facts: dict[str, str | None] = {
        "family": subject.family,
        "parameters": _number(manifest, "parameters"),
        "vocabulary": _number(manifest, "vocab_size"),
        "context": _number(manifest, "kv_cache_len", " tokens"),
        "KV cache": named(manifest, "kv_cache_dtype") or ("float32" if manifest else None),
        "signatures": printable(", ".join(map(str, signatures))) if isinstance(signatures, list) else None,
        "size": None if subject.bytes is None else f"{figures(subject.bytes / 1e6)} MB",
        "checkpoint": named(manifest, "checkpoint"),
        "adapter": None if lora is None else named(lora, "name") or "merged",
        "calibration": None if calibration is None else f"{named(calibration, 'file')}, {_number(calibration, 'tokens')} tokens",
        "made by": f"flatlm {named(manifest, 'flatlm')}" if named(manifest, "flatlm") else None,
        "versions": printable(", ".join(f"{k} {v}" for k, v in versions.items())) if isinstance(versions, Mapping) else None,
    }
    optional = ("adapter", "calibration")
    rows = tuple(
        (Cell(key), NOT_KNOWN if value is None else Cell(value, Kind.CODE if key == "checkpoint" else Kind.TEXT))
        for key, value in facts.items()
        if value is not None or key not in optional
    )
    return Table("Model card", ("", "value"), rows)


def _recipe(subject: Subject) -> list[Block]:
    recipe, blocks = subject.manifest.get("recipe"), list[Block]()
    rules = at(recipe, "rules")
    if not isinstance(rules, list):
        return []
    rows = tuple((text_cell(named(rule, "pattern"), Kind.CODE), text_cell(named(rule, "scheme"))) for rule in rules)
    name = subject.recipe or "without a name"
    blocks.append(Table(f"Recipe {name}: the first pattern that fits a weight decides", ("weights", "scheme"), rows))
    summary, warning, method = named(recipe, "summary"), named(recipe, "warning"), at(recipe, "method")
    said = [summary.capitalize() if summary else "", f"Warning: {warning}" if warning else ""]
    rounding = named(method, "rounding")
    extras = [key for key in ("rotate", "migrate", "smooth") if at(method, key)]
    said.append(f"Rounding: {rounding}{''.join(f', {extra}' for extra in extras)}" if rounding else "")
    text = ". ".join(part.rstrip(".") for part in said if part)
    return [*blocks, Paragraph(f"{text}.")] if text else blocks


def _sizes(subject: Subject) -> list[Block]:
    weights = subject.inspection.get("weights")
    if not isinstance(weights, Mapping):
        return []
    known = []
    for scheme, entry in weights.items():
        tensors, size = map(number, entry) if isinstance(entry, list | tuple) and len(entry) == 2 else (None, None)
        if tensors is not None and size is not None:
            known.append((str(scheme), int(tensors), size))
    whole = sum(size for _, _, size in known)
    rest = (subject.bytes or 0) - whole
    rows = [
        (text_cell(scheme), cell(tensors), cell(size, factor=1e-6), Cell(f"{size / whole * 100:.1f} %" if whole else "", Kind.NUMBER))
        for scheme, tensors, size in sorted(known, key=lambda entry: -entry[2])
    ]
    nothing = Cell("", Kind.NUMBER)
    if rest > 0:
        rows.append((Cell("everything else: graphs, scales per channel, manifest"), nothing, cell(rest, factor=1e-6), nothing))
    return [Table("Sizes by scheme", ("stored as", "tensors", "MB", "of the weights"), tuple(rows))]


def _signatures(subject: Subject) -> list[Block]:
    rows = []
    for signature in _each(subject):
        inputs, outputs = at(signature, "inputs"), at(signature, "outputs")
        inputs, outputs = (tensors if isinstance(tensors, Mapping) else {} for tensors in (inputs, outputs))
        caches = [name for name in inputs if str(name).startswith("kv_cache_")]
        example = f"{len(caches)}, such as {caches[0]} {inputs[caches[0]]}" if caches else "none"
        rows.append(
            (
                text_cell(named(signature, "name"), Kind.CODE),
                text_cell(", ".join(f"{name} {spec}" for name, spec in inputs.items() if name not in caches), Kind.CODE),
                text_cell(", ".join(f"{name} {spec}" for name, spec in outputs.items() if name not in caches) or "caches only", Kind.CODE),
                text_cell(example, Kind.CODE),
            )
        )
    return [Table("Signatures", ("name", "inputs", "outputs", "caches"), tuple(rows))] if rows else []


def _census(subject: Subject) -> list[Block]:
    counts: dict[str, Mapping[str, object]] = {}
    for signature in _each(subject):
        operators = at(signature, "operators")
        counts[named(signature, "name") or "?"] = operators if isinstance(operators, Mapping) else {}
    names = list(dict.fromkeys(name for operators in counts.values() for name in operators))
    if not names:
        return []
    rows = [
        (Cell(printable(str(name)), Kind.CODE), *(cell(operators.get(name, 0)) for operators in counts.values()))
        for name in sorted(names, key=lambda name: -max(number(operators.get(name)) or 0 for operators in counts.values()))
    ]
    total = [sum(value for value in operators.values() if isinstance(value, int)) for operators in counts.values()]
    return [Table("Operators", ("operator", *counts), (*rows, (Cell("all"), *(cell(value) for value in total))))]


def _layers(subject: Subject) -> list[Block]:
    rows = tuple((Cell(str(layer), Kind.NUMBER), cell(keys), cell(values)) for layer, keys, values in subject.layer_rows())
    return [Table("Relative error of each layer", ("layer", "keys", "values"), rows)] if rows else []


def _each(subject: Subject) -> list[Any]:
    signatures = subject.inspection.get("signatures")
    return list(signatures) if isinstance(signatures, list | tuple) else []


def _number(values: object, key: str, unit: str = "") -> str | None:
    found = number(at(values, key))
    return None if found is None else f"{found:,.0f}{unit}"

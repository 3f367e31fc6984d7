"""Which weight is stored how: the recipes as a table of frozen records; a user's own mixed recipe is one more such record.

Patterns match the names of the re-authored model's weights (ARCHITECTURE.md has the list) as shell patterns: `*` crosses
dots, case matters, the first rule that matches wins, and the last rule is `*`. A tied head has no weight of its own: the
`embedding.*` rule serves both, so its scheme must suit EMBEDDING_LOOKUP and FULLY_CONNECTED.

Norms, biases and whatever has one dimension stay float32 in every recipe: they are small, and rounding them buys nothing.
Importing this loads neither torch nor numpy.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, Self

from flatlm.errors import RecipeError
from flatlm.quantize.activations import LayerRanges
from flatlm.quantize.method import PLAIN, Method
from flatlm.quantize.schemes import SCHEMES, Scheme, get_scheme, unknown_name

EMBEDDING = "embedding.*"
ATTENTION = "*.attention.*"
FEED_FORWARD = "*.feed_forward.*"
HEAD = "lm_head.*"
ROUTER = "*.router.*"
TABLES = "*embedding.*"
REST = "*"

LAYER_KINDS = frozenset({EMBEDDING, ATTENTION, FEED_FORWARD, HEAD, ROUTER, TABLES, REST})
"""Patterns that say what is done with a kind of layer wherever there is one; any other names weights that must be there."""

# Structural, not a matter of taste: no rule of a recipe is asked about these.
ALWAYS_FLOAT32 = ("*_norm.*", "*.bias")


@dataclass(frozen=True, slots=True)
class Rule:
    """Weights whose name matches `pattern` are stored by the scheme called `scheme_name`."""

    pattern: str
    scheme_name: str


@dataclass(frozen=True, slots=True)
class Bound:
    """How near to the reference an exported file must be to pass as healthy; None: not judged by that measure.

    `max_abs_error` is the largest difference of a logit, `mean_kl` the mean KL divergence (nats) of the next-token
    distributions, and `top1_agreement` the least share of positions whose most likely token is the same.
    """

    max_abs_error: float | None = None
    mean_kl: float | None = None
    top1_agreement: float | None = None

    @property
    def measured_only(self) -> bool:
        """Whether there is nothing to pass: the report says what was measured, and never that the file is healthy."""
        return self == Bound()


# Keyed by scheme, as the bounds are, so that a mixed recipe carries the warnings of what is in it.
WARNINGS: Mapping[str, str] = MappingProxyType(
    {
        "dynamic_int4_channel": "rounding to int4 per channel without calibration is known to break models: prefer dynamic_int4_block32, "
        "or weights that were trained or calibrated for it",
    }
)

# Keyed by scheme, because a mixed recipe takes the loosest bound of the schemes in it. What they rest on: healthy int8
# files of real-size models agree on more than 99 % of the tokens, and below 95 % something is wrong; the int4 figures are
# what block-wise rounding without calibration costs healthy models; per-channel int4 without calibration has no healthy
# range, and static int8 is what its calibration makes it, so these are measured only.
BOUNDS: Mapping[str, Bound] = MappingProxyType(
    {
        "float32": Bound(max_abs_error=1e-4),
        "float16": Bound(mean_kl=0.0005, top1_agreement=0.99),
        "dynamic_int8": Bound(mean_kl=0.01, top1_agreement=0.95),
        "weight_only_int8": Bound(mean_kl=0.01, top1_agreement=0.95),
        "static_int8": Bound(),
        "dynamic_int4_block32": Bound(mean_kl=0.15, top1_agreement=0.80),
        "dynamic_int4_block128": Bound(mean_kl=0.3, top1_agreement=0.7),
        "dynamic_int4_channel": Bound(),
    }
)

# What a method that calibrates makes of schemes that without it are measured only.
CALIBRATED_BOUNDS: Mapping[str, Bound] = MappingProxyType({"dynamic_int4_channel": BOUNDS["dynamic_int4_block128"]})


@dataclass(frozen=True, slots=True)
class Recipe:
    """An ordered table of rules, with the file suffix, the bound and the words that go with it. Checked when it is made.

    `activations`: the ranges that schemes of static activations need, by the name of the linear's weight.
    """

    name: str
    rules: tuple[Rule, ...]
    suffix: str
    bound: Bound
    summary: str
    warning: str | None = None
    method: Method = PLAIN
    activations: Mapping[str, LayerRanges] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not self.suffix or not self.suffix.replace("_", "").isalnum():
            raise RecipeError(f"recipe {self.name!r}: suffix {self.suffix!r} goes into a file name; use letters, digits and _")
        patterns = [rule.pattern for rule in self.rules]
        if REST not in patterns or patterns.index(REST) != len(patterns) - 1:
            raise RecipeError(f"recipe {self.name!r}: the last rule, and no other, must be {REST!r}, so that every weight has a scheme")
        for pattern in patterns:
            if patterns.count(pattern) > 1:
                raise RecipeError(f"recipe {self.name!r}: pattern {pattern!r} is there twice, and the first match wins")
        for rule in self.rules:
            if rule.scheme_name not in SCHEMES:
                raise unknown_name(f"scheme (recipe {self.name!r}, pattern {rule.pattern!r})", rule.scheme_name, SCHEMES)

    @classmethod
    def of(cls, name: str, rules: tuple[Rule, ...], suffix: str, summary: str, method: Method = PLAIN) -> Self:
        """A recipe with the loosest bound of its schemes, their integers chosen by `method`, and with their warning."""
        bare = cls(name, rules, suffix, Bound(), summary, method=method)  # checked before its schemes are looked up
        schemes = [rule.scheme_name for rule in rules]
        warned = () if method.calibrates else (WARNINGS[scheme] for scheme in schemes if scheme in WARNINGS)
        return dataclasses.replace(bare, bound=loosest_bound(schemes, method), warning=next(iter(warned), None))

    @classmethod
    def mixed(cls, name: str, base: str | Self, overrides: Mapping[str, str]) -> Self:
        """A recipe that asks `overrides` (pattern to scheme name, in order) first and then `base`; `*` is still asked last.

        Its bound is the loosest of its schemes', and its warning theirs. Its method is the base's.

        >>> Recipe.mixed("int4_int8_head", "dynamic_int4_block32", {"lm_head.*": "dynamic_int8"}).scheme_for("lm_head.weight").name
        'dynamic_int8'
        """
        parent = get_recipe(base) if isinstance(base, str) else base
        kept = tuple(rule for rule in parent.rules if rule.pattern not in overrides)
        rules = tuple(Rule(pattern, scheme) for pattern, scheme in overrides.items() if pattern != REST)
        rest = (Rule(REST, overrides[REST]),) if REST in overrides else ()
        summary = f"{parent.name}, but " + ", ".join(f"{p} {s}" for p, s in overrides.items())
        recipe = cls.of(name, (*rules, *kept, *rest), name, summary, parent.method)
        return dataclasses.replace(recipe, warning=parent.warning or recipe.warning, activations=parent.activations)

    def scheme_for(self, weight_name: str, shape: Sequence[int] | None = None) -> Scheme:
        """The scheme of the first rule that matches; float32 for norms, biases and, where a shape is given, whatever has one dimension."""
        if _is_structural(weight_name) or (shape is not None and len(shape) < 2):
            return SCHEMES["float32"]
        return get_scheme(self.rule_for(weight_name).scheme_name)

    def rule_for(self, weight_name: str) -> Rule:
        """The first rule whose pattern matches; whether it is asked at all is `scheme_for`'s affair."""
        return next(rule for rule in self.rules if fnmatchcase(weight_name, rule.pattern))

    @property
    def calibrated(self) -> bool:
        """Whether it may ask for calibration text: by its method, or for the ranges of static activations."""
        return self.method.needs_text or any(get_scheme(rule.scheme_name).compute == "static" for rule in self.rules)

    def lacks_ranges(self, weight_name: str) -> bool:
        """Whether a weight's scheme needs ranges of activations that the recipe does not have yet."""
        return self.scheme_for(weight_name).compute == "static" and weight_name not in self.activations

    def needs_text(self, weight_names: Iterable[str]) -> bool:
        """Whether it asks, of a model with these weights, for something that only calibration text can tell."""
        return self.method.needs_text or any(self.lacks_ranges(name) for name in weight_names)

    def ranges_for(self, weight_name: str, scheme: Scheme) -> LayerRanges | None:
        """The ranges of its linear's activations, where a weight's scheme needs them, else None. RecipeError where they are missing."""
        if scheme.compute != "static":
            return None
        if weight_name not in self.activations:
            raise RecipeError(
                f"recipe {self.name!r}: scheme {scheme.name!r} needs the ranges of what {weight_name!r} reads and gives, and the recipe "
                "has none: calibrate the model, or give the weight another scheme (a table that is only looked up: dynamic_int8)"
            )
        return self.activations[weight_name]

    def require_matches(self, names: Iterable[str]) -> None:
        """RecipeError where a pattern decides no weight among `names`, unless it is one of LAYER_KINDS, which a model may lack."""
        names = list(names)
        idle = [pattern for pattern in self.unmatched(names) if pattern not in LAYER_KINDS]
        if idle:
            weights = [name for name in names if not _is_structural(name)]
            raise RecipeError(
                f"recipe {self.name!r}: no weight is decided by {', '.join(map(repr, idle))}: misspelt, or hidden by an earlier rule "
                f"(the model's weights: {', '.join(weights[:8])}{', ...' if len(weights) > 8 else ''})"
            )

    def unmatched(self, names: Iterable[str]) -> tuple[str, ...]:
        """The patterns that decide no weight among `names`: misspelt, hidden by an earlier rule, or for a layer the model lacks."""
        deciding = {self.rule_for(name).pattern for name in names if not _is_structural(name)}
        return tuple(rule.pattern for rule in self.rules if rule.pattern not in deciding and rule.pattern != REST)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` reads it back."""
        data = dataclasses.asdict(dataclasses.replace(self, activations={}))
        data["rules"] = [{"pattern": rule.pattern, "scheme": rule.scheme_name} for rule in self.rules]
        data["activations"] = {name: ranges.to_dict() for name, ranges in self.activations.items()}
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The recipe that `to_dict` wrote or a user typed; RecipeError for an unknown key, a missing one, or a wrong kind of value."""
        fields = _fields(data, "recipe", cls)
        rules = fields["rules"]
        if not isinstance(rules, list | tuple):
            raise RecipeError(f"recipe: 'rules' must be a list of {{'pattern': ..., 'scheme': ...}}, not {rules!r}")
        table = []
        for rule in rules:
            _keys(rule, "recipe rule", required={"pattern", "scheme"})
            table.append(Rule(_text(rule["pattern"], "pattern"), _text(rule["scheme"], "scheme")))
        bound = _fields(fields["bound"], "recipe bound", Bound)
        for key, value in bound.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise RecipeError(f"recipe bound: {key!r} must be a number or null, not {value!r}")
        text = {key: _text(fields[key], key) for key in ("name", "suffix", "summary")}
        warning = fields.get("warning")
        warning = None if warning is None else _text(warning, "warning")
        method = _method(fields.get("method", {}))
        ranges = fields.get("activations", {})
        if not isinstance(ranges, Mapping):
            raise RecipeError(f"recipe: 'activations' must be a table of ranges by weight, not {ranges!r}")
        activations = {name: LayerRanges.from_dict(name, entry) for name, entry in ranges.items()}
        return cls(rules=tuple(table), bound=Bound(**bound), warning=warning, method=method, activations=activations, **text)


def loosest_bound(scheme_names: Iterable[str], method: Method = PLAIN) -> Bound:
    """The bound that a file with all of these schemes can be held to: the loosest of theirs, as the worst weight decides."""
    table = {**BOUNDS, **CALIBRATED_BOUNDS} if method.calibrates else BOUNDS
    bounds = [table[name] for name in scheme_names]
    if any(bound.measured_only for bound in bounds):
        return Bound()
    return max(bounds, key=lambda bound: -1.0 if bound.mean_kl is None else bound.mean_kl)


def layers(*, embedding: str, attention: str, feed_forward: str, head: str) -> tuple[Rule, ...]:
    """One table of rules by the kind of layer; what is of no kind (a router, a projector) goes as the feed-forward does."""
    return (
        Rule(EMBEDDING, embedding),
        Rule(ATTENTION, attention),
        Rule(FEED_FORWARD, feed_forward),
        Rule(HEAD, head),
        Rule(REST, feed_forward),
    )


def _everywhere(scheme: str) -> tuple[Rule, ...]:
    return layers(embedding=scheme, attention=scheme, feed_forward=scheme, head=scheme)


_BLOCK32, _BLOCK128, _CHANNEL = "dynamic_int4_block32", "dynamic_int4_block128", "dynamic_int4_channel"

_SEARCHED, _CALIBRATED = Method("scale_search"), Method("gptq")
_DYNAMIC = "activations quantized as they come"
_STATIC = "int8 per channel between int8 activations of calibrated ranges; head, router and tables as dynamic_int8 has them"
_BLOCKS_OF_128 = layers(embedding=_BLOCK32, attention=_BLOCK128, feed_forward=_BLOCK128, head=_BLOCK128)
_STATIC_BLOCKS = (
    Rule(ROUTER, "dynamic_int8"),
    Rule(TABLES, "dynamic_int8"),
    *layers(embedding="dynamic_int8", attention="static_int8", feed_forward="static_int8", head="dynamic_int8")[1:],
)


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        recipe.name: recipe
        for recipe in (
            Recipe.of("none", _everywhere("float32"), "f32", "float32 weights, exactly as in the checkpoint"),
            Recipe.of("fp16", _everywhere("float16"), "fp16", "float16 weights, computed in float"),
            Recipe.of("dynamic_int8", _everywhere("dynamic_int8"), "q8", f"int8 per channel, {_DYNAMIC}"),
            Recipe.of("weight_only_int8", _everywhere("weight_only_int8"), "q8_wo", "int8 per channel, dequantized to compute in float"),
            Recipe.of("static_int8", _STATIC_BLOCKS, "q8_static", _STATIC),
            Recipe.of(_BLOCK32, _everywhere(_BLOCK32), "q4_block32", f"int4 in blocks of 32, {_DYNAMIC}"),
            Recipe.of(_BLOCK128, _BLOCKS_OF_128, "q4_block128", f"int4 in blocks of 128 (the embedding in blocks of 32), {_DYNAMIC}"),
            Recipe.of(_CHANNEL, _everywhere(_CHANNEL), "q4_channel", f"int4 per channel, {_DYNAMIC}"),
            Recipe.of("searched_int4_block32", _everywhere(_BLOCK32), "q4_block32_s", f"{_BLOCK32}, scales of the least error", _SEARCHED),
            Recipe.of("searched_int4_channel", _everywhere(_CHANNEL), "q4_channel_s", f"{_CHANNEL}, scales of the least error", _SEARCHED),
            Recipe.of("calibrated_int4_block32", _everywhere(_BLOCK32), "q4_block32_c", f"{_BLOCK32}, calibrated by GPTQ", _CALIBRATED),
            Recipe.of("calibrated_int4_block128", _BLOCKS_OF_128, "q4_block128_c", f"{_BLOCK128}, calibrated by GPTQ", _CALIBRATED),
            Recipe.of("calibrated_int4_channel", _everywhere(_CHANNEL), "q4_channel_c", f"{_CHANNEL}, calibrated by GPTQ", _CALIBRATED),
        )
    }
)


def get_recipe(name: str) -> Recipe:
    """The recipe of that name; RecipeError with the nearest names where there is none."""
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    return RECIPES[name]


def _is_structural(weight_name: str) -> bool:
    return any(fnmatchcase(weight_name, pattern) for pattern in ALWAYS_FLOAT32)


def _method(data: object) -> Method:
    values = _fields(data, "recipe method", Method)
    for key, value in values.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        right = {"rounding": isinstance(value, str), "smooth": value is None or number}.get(key, isinstance(value, bool))
        if not right:
            raise RecipeError(f"recipe method: {key!r} cannot be {value!r}")
    return Method(**values)


def _fields(data: object, what: str, record: type[Recipe] | type[Bound] | type[Method]) -> dict[str, Any]:
    fields = dataclasses.fields(record)
    required = {each.name for each in fields if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING}
    return _keys(data, what, required=required, optional={each.name for each in fields} - required)


def _keys(data: object, what: str, *, required: set[str], optional: frozenset[str] | set[str] = frozenset()) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise RecipeError(f"{what} must be a table of {', '.join(sorted(required | optional))}, not {data!r}")
    for key in data:
        if key not in required | optional:
            raise unknown_name(f"{what} key", key, sorted(required | optional))
    if missing := sorted(required - data.keys()):
        raise RecipeError(f"{what} lacks {', '.join(map(repr, missing))}")
    return dict(data)


def _text(value: object, key: str) -> str:
    if not isinstance(value, str) or not value:
        raise RecipeError(f"recipe: {key!r} must be text, not {value!r}")
    return value

"""An author's class as a model of FlatLM's: built on the meta device, tried out, and run with the decoders' conventions."""

import inspect
import json
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from flatlm.authoring.author_code import prints_aside
from flatlm.authoring.config import AuthoredConfig, ModelConfig, require_sizes
from flatlm.authoring.module_map import ModuleReference
from flatlm.authoring.modules.attention import Attention
from flatlm.authoring.modules.rotary import RotaryEmbedding
from flatlm.authoring.step import Step, StepContext, StepContextManager
from flatlm.authoring.weight_calls import Uses, WeightCalls
from flatlm.errors import ConfigError, FlatlmError
from flatlm.layers import ops
from flatlm.layers.config import AttentionConfig
from flatlm.layers.kv_cache import Cache, CacheGeometry, empty_caches
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.registry import ConfigBuilder

PLAIN_VALUES: Mapping[str, tuple[Any, ...]] = {
    "attention_bias": (False,),
    "hidden_act": ("silu", "swish"),
    "mlp_bias": (False,),
    "partial_rotary_factor": (1, 1.0),
    "rope_interleaved": (False,),
    "tie_word_embeddings": (False,),
    "use_sliding_window": (False,),
}
"""What a class that does not ask for a key takes it to be."""
_NOT_AUTHORS = (f"{Path(__file__).parents[1]}/", f"{sysconfig.get_path('stdlib')}/")
TRIAL_TOKENS = 2
EMBEDDING, HEAD = "embedding.weight", "lm_head.weight"
"""What recipes call the table that tokens are looked up in, and the product that gives the logits."""


class AuthoredModel(nn.Module):
    """An author's module, called as a `Decoder` is. Its parameters have the names that the file gives them (`AuthoredConfig.names`)."""

    def __init__(self, config: AuthoredConfig, geometry: CacheGeometry) -> None:
        super().__init__()
        self.config, self.geometry = config, geometry
        self.context = StepContextManager()
        self.module = construct(config.reference, ConfigReader(json.loads(config.values), config.source), self.context)
        for each in self.module.modules():
            if isinstance(each, RotaryEmbedding):
                each.tables(geometry.positions)
        self._shared = [names for names in _aliases(self.module) if len(names) > 1]
        self._file_names = dict(config.names)

    def forward(self, tokens: Tensor, input_pos: Tensor, caches: Sequence[Cache] | None = None) -> tuple[Tensor, list[Cache]]:
        """Logits [1, T, V] and the updated caches for tokens [1, T] int32 at consecutive positions input_pos [T] int32.

        `caches`: None is empty ones.
        """
        given = empty_caches(self.config, self.geometry) if caches is None else caches  # type: ignore[arg-type]
        step = Step(input_pos, self.geometry, self.config.attentions, given, len(given))
        with prints_aside():
            logits = run(self.module, self.context, tokens, input_pos, step)
        return logits, [layer.cache for layer in step.layers]

    def named_parameters(self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True) -> Iterator[tuple[str, nn.Parameter]]:
        """Under the file's names."""
        for name, parameter in self.module.named_parameters(prefix, recurse, remove_duplicate):
            yield self._file_names.get(name, name), parameter

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Under the file's names."""
        own = {file_name: name for name, file_name in self.config.names}
        return self.module.load_state_dict({own.get(name, name): value for name, value in state_dict.items()}, strict, assign)

    def tie(self) -> None:
        """Share again what the author's code shared, after values were assigned."""
        for first, *others in self._shared:
            for name in others:
                owner, _, attribute = name.rpartition(".")
                setattr(self.module.get_submodule(owner), attribute, self.module.get_parameter(first))

    def weight_calls(self, like: Tensor) -> WeightCalls:
        """Within it, reading a parameter is a named call. `like`: a float32 tensor of the graph."""
        for name, layer in self.module.named_modules():
            if isinstance(layer, ops.Named):  # a layer of FlatLM's own emits its calls by itself
                layer.path = self._file_names.get(f"{name}.weight", f"{name}.weight").removesuffix(".weight")
        return WeightCalls(list(self.module.named_parameters()), like, self._file_names)


def author(
    reference: ModuleReference, hf_config: ConfigReader, model_path: Path, builder: type[ConfigBuilder] | None = None
) -> AuthoredConfig:
    """The configuration of an author's class for a checkpoint: the class is built, and run on two tokens without weights.

    `builder`: the one from outside that takes the checkpoint, if there is one. Raises ConfigError for whatever the class does wrong.
    """
    said = None if builder is None else builder.build(hf_config, model_path)
    context = StepContextManager()
    module = construct(reference, hf_config, context)
    layers = getattr(said, "num_layers", None) or sum(isinstance(each, Attention) for each in module.modules())
    step, uses, width, logits = _trial(module, context, layers, reference)
    attentions = _in_order(step.attentions, reference)
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    names, tied = _roles(uses, shapes, logits)
    longest = getattr(said, "max_positions", None)
    sizes = {
        "vocab_size": logits,
        "hidden_size": width,
        "num_layers": len(attentions),
        "num_attention_heads": attentions[0].num_query_heads,
        "num_key_value_heads": attentions[0].num_kv_heads,
        "head_dim": attentions[0].head_dim,
    }
    if isinstance(said, ModelConfig):
        require_sizes(said, hf_config, sizes)
    if longest is None:
        longest = hf_config.positive_int("max_position_embeddings", 2048)
    hf_config.skip("max_position_embeddings")
    for each in module.modules():
        if isinstance(each, RotaryEmbedding) and each.unscaled is not None and longest > each.unscaled:
            raise ConfigError(
                f"{reference}: max_positions is {longest}, and its dynamic scaling begins beyond {each.unscaled} positions, where a file "
                f"cannot follow it: let the builder's max_positions be {each.unscaled}"
            )
    _settle(hf_config, sizes, attentions, tied=tied)
    values = json.dumps({**dict(hf_config.values), **hf_config.filled_in()})
    return AuthoredConfig(reference, values, hf_config.source, logits, width, longest, attentions, tied, tuple(names.items()))


def construct(reference: ModuleReference, hf_config: ConfigReader, context: StepContextManager) -> nn.Module:
    """The author's module, its parameters on the meta device, tied as its `update_weights` ties them. Raises ConfigError."""
    made = reference.resolve()
    try:
        with prints_aside(), torch.no_grad(), _ParametersOnMeta():
            offered: dict[str, Any] = {"dtype": torch.float32, "device": None}
            accepted = inspect.signature(made.__init__).parameters
            takes_all = any(each.kind is each.VAR_KEYWORD for each in accepted.values())
            keywords = {name: value for name, value in offered.items() if name in accepted or takes_all}
            module = made(hf_config, context, **keywords)
    except FlatlmError:
        raise
    except (Exception, SystemExit) as error:  # whatever an author's code raises
        raise ConfigError(
            f"{reference}(config, ctx_mgr, dtype=, device=) cannot be built for {hf_config.source}: {_described(error)}"
        ) from error
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{reference} is not a torch.nn.Module")
    _to_meta(module)
    try:
        with prints_aside():
            update_weights(module)
    except Exception as error:  # whatever an author's code raises
        raise ConfigError(f"{reference}: update_weights() failed for {hf_config.source}: {_described(error)}") from error
    if (bare := next((name for name, parameter in module.named_parameters() if not parameter.dim()), None)) is not None:
        raise ConfigError(f"{reference}: the parameter {bare} has no dimension: make it [1], and load it so")
    return module.eval().requires_grad_(False)


def update_weights(module: nn.Module) -> None:
    """What lmdeploy does once weights are loaded: each module's own `update_weights()`, where heads are tied."""
    for each in module.modules():
        update = getattr(each, "update_weights", None)
        if callable(update):
            update()


def run(module: nn.Module, context: StepContextManager, tokens: Tensor, input_pos: Tensor, step: Step) -> Tensor:
    """Logits [1, T, V] of the author's forward (and `get_logits`, where there is one)."""
    if tokens.shape[0] != 1:
        raise ValueError(f"an author's module reads one text at a time, not {tokens.shape[0]}")
    context.context = StepContext(tokens, input_pos[None, :], step.layers, step)
    inputs: dict[str, Any] = {
        "input_ids": tokens,
        "position_ids": context.context.position_ids,
        "past_key_values": step.layers,
        "attn_metadata": step,
        "inputs_embeds": None,
    }
    try:
        with step.running():
            prepare = getattr(module, "prepare_inputs_for_generation", None)
            prepared = None if prepare is None else prepare(step.layers, None, context.context)
            out = module(**_accepted(module.forward, prepared or inputs))
            out = out[0] if isinstance(out, tuple | list) else out
            get_logits: Callable[[Any], Tensor] | None = getattr(module, "get_logits", None)
            logits = out if get_logits is None else get_logits(out)
    finally:
        context.context = None
    return logits.reshape(1, tokens.shape[1], logits.shape[-1])


def _accepted(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters
    if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return dict(given)
    return {name: value for name, value in given.items() if name in parameters}


def _trial(module: nn.Module, context: StepContextManager, layers: int, reference: ModuleReference) -> tuple[Step, Uses, int, int]:
    """A step of two tokens: it, how parameters were read, D and V."""
    tokens, input_pos = torch.zeros(1, TRIAL_TOKENS, dtype=torch.int32), torch.arange(TRIAL_TOKENS, dtype=torch.int32)
    step = Step(input_pos, CacheGeometry(TRIAL_TOKENS), (), None, layers)
    shapes = dict(module.named_parameters())
    try:
        with prints_aside(), torch.no_grad(), WeightCalls(list(shapes.items()), torch.zeros(1)) as calls:
            logits = run(module, context, tokens, input_pos, step)
    except FlatlmError:
        raise
    except (Exception, SystemExit) as error:  # whatever an author's code raises
        raise ConfigError(
            f"{reference}.forward(input_ids, position_ids, past_key_values, attn_metadata, inputs_embeds) failed on two tokens: "
            f"{_described(error)}"
        ) from error
    if not calls.uses.tables:
        raise ConfigError(f"{reference}: no parameter is looked up by an embedding, so nothing is known of the tokens")
    table = _table(calls.uses, {name: tuple(each.shape) for name, each in shapes.items()}, logits.shape[-1])
    return step, calls.uses, shapes[table].shape[1], logits.shape[-1]


def _table(uses: Uses, shapes: Mapping[str, tuple[int, ...]], vocab_size: int) -> str:
    """The table that tokens are looked up in: of as many rows as there are logits, or the first."""
    return next((name for name in uses.tables if shapes[name][0] == vocab_size), next(iter(uses.tables)))


def _roles(uses: Uses, shapes: Mapping[str, tuple[int, ...]], vocab_size: int) -> tuple[dict[str, str], bool]:
    """What the file calls the table and the head (and its bias), unless those names are taken; and whether they are one."""
    table, names = _table(uses, shapes, vocab_size), {}
    head, bias = next(reversed(uses.linears.items()), ("", None))
    tied = head == table
    if EMBEDDING not in shapes:
        names[table] = EMBEDDING
    if head and not tied and shapes[head][0] == vocab_size and HEAD not in shapes:
        names[head] = HEAD
        if bias is not None and "lm_head.bias" not in shapes:
            names[bias] = "lm_head.bias"
    return {name: other for name, other in names.items() if name != other}, tied


def _in_order(attentions: Mapping[int, AttentionConfig], reference: ModuleReference) -> tuple[AttentionConfig, ...]:
    if not attentions or sorted(attentions) != list(range(len(attentions))):
        raise ConfigError(
            f"{reference}: Attention was called with past_key_values of the layers {sorted(attentions)}: use 0, 1, 2, ... without a gap"
        )
    return tuple(attentions[layer] for layer in range(len(attentions)))


def _settle(hf_config: ConfigReader, sizes: Mapping[str, int], attentions: Sequence[AttentionConfig], *, tied: bool) -> None:
    """Count keys as read that say what the module is anyway."""
    values = hf_config.values
    for key, plain in PLAIN_VALUES.items():
        if values.get(key) in plain:
            hf_config.skip(key)
    hf_config.skip(*(key for key, size in sizes.items() if values.get(key) == size))
    if tied:
        hf_config.skip("tie_word_embeddings")
    if all(attention.mask.window is None for attention in attentions):
        if values.get("use_sliding_window") is False:
            hf_config.skip("sliding_window", "max_window_layers")
        if set(values.get("layer_types") or ["full_attention"]) == {"full_attention"}:
            hf_config.skip("layer_types")


class _ParametersOnMeta(TorchFunctionMode):
    """Within it, `torch.empty`, which parameters are made by, makes tensors without memory. All else, such as tables, is real."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _to_meta(module: nn.Module) -> None:
    """Parameters that were made otherwise lose their memory too; what an author has hung on them stays."""
    moved: dict[int, nn.Parameter] = {}
    for each in module.modules():
        for name, parameter in each._parameters.items():
            if parameter is None or parameter.is_meta:
                continue
            if id(parameter) not in moved:
                moved[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
                moved[id(parameter)].__dict__.update(parameter.__dict__)
            each._parameters[name] = moved[id(parameter)]


def _aliases(module: nn.Module) -> list[list[str]]:
    """Each parameter's names."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return list(names.values())


def author_line(error: BaseException) -> str | None:
    """The file and line of an author's code that an error came through last; None where it came through none."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(("<", *_NOT_AUTHORS)) and "site-packages" not in frame.filename]
    return f"{Path(own[-1].filename).name}, line {own[-1].lineno}" if own else None


def _described(error: BaseException) -> str:
    """What an author's code raised, and where."""
    where = "" if (line := author_line(error)) is None else f" ({line})"
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}{': ' + text[0] if text else ''}{where}"

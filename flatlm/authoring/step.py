"""One step of an author's model: its positions, masks and caches, and how the caches come back out.

lmdeploy writes caches in place; an exported signature takes them in and gives them back. So `past_key_values[i][0]` is a handle that
`Attention` reads and replaces, and after the author's forward the step has every layer's updated cache.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from flatlm.errors import ConfigError
from flatlm.layers.config import AttentionConfig
from flatlm.layers.kv_cache import Cache, CacheGeometry, Placement, place, positions_held
from flatlm.layers.mask import attention_mask

_CURRENT: ContextVar["Step | None"] = ContextVar("flatlm_step", default=None)


class CacheHandle(NamedTuple):
    """A layer's keys or values, as an author's code passes them on."""

    layer: "LayerCache"
    part: str


class LayerCache(Sequence[CacheHandle]):
    """A layer's cache during a step, as lmdeploy's pair [keys, values]."""

    def __init__(self, step: "Step", number: int, cache: Cache | None) -> None:
        self.step, self.number, self._cache = step, number, cache
        self._used = False

    @property
    def cache(self) -> Cache:
        assert self._cache is not None
        return self._cache

    @cache.setter
    def cache(self, cache: Cache) -> None:
        self._cache = cache

    def attend(self, config: AttentionConfig) -> bool:
        """Note who reads the layer; False in a step that only finds that out. Raises ConfigError for a second reader."""
        if self._used:
            raise ConfigError(f"past_key_values[{self.number}] is given to two Attention calls: each needs a cache of its own")
        self._used = True
        self.step.attentions[self.number] = config
        return self._cache is not None

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: Any) -> Any:
        return (CacheHandle(self, "keys"), CacheHandle(self, "values"))[index]


class Step:
    """A step of T tokens at `input_pos` [T] over caches of a geometry.

    `caches` None: a trial, in which `Attention` only says what it is (`attentions`, by layer).
    """

    def __init__(
        self, input_pos: Tensor, geometry: CacheGeometry, attentions: Sequence[AttentionConfig], caches: Sequence[Cache] | None, layers: int
    ) -> None:
        self.length, self.positions = geometry.length, geometry.positions
        self.tokens = input_pos.shape[0]
        self.attentions: dict[int, AttentionConfig] = {}
        self._geometry = geometry
        given: Sequence[Cache | None] = [None] * layers if caches is None else caches
        self.layers = [LayerCache(self, number, cache) for number, cache in enumerate(given)]
        # All masks and places are made here, before any layer: equal layers stay equal.
        self._kinds = {self._kind(config): self._make(config, input_pos) for config in attentions}

    def _kind(self, config: AttentionConfig) -> tuple[Any, int]:
        return config.mask, self._geometry.slots(config)

    def _make(self, config: AttentionConfig, input_pos: Tensor) -> tuple[Tensor, Placement]:
        slots = self._geometry.slots(config)
        held = positions_held(input_pos, slots, self.length)
        return attention_mask(config.mask, input_pos, held), place(input_pos, slots, self.length)

    def kind_of(self, config: AttentionConfig) -> tuple[Tensor, Placement]:
        """The mask [T, S] and the place of the step's tokens in a layer of such attention."""
        return self._kinds[self._kind(config)]

    @contextmanager
    def running(self) -> Iterator["Step"]:
        """Within it, `current_step` is this one."""
        token = _CURRENT.set(self)
        try:
            yield self
        finally:
            _CURRENT.reset(token)


def current_step() -> Step:
    """The step that is being run. Raises RuntimeError outside of one."""
    step = _CURRENT.get()
    if step is None:
        raise RuntimeError("a module of flatlm.authoring was called outside of a model's forward")
    return step


@dataclass(frozen=True)
class StepContext:
    """What `prepare_inputs_for_generation` is told. `attn_metadata` is passed on to `Attention`, which does not need it."""

    input_ids: Tensor
    position_ids: Tensor
    past_key_values: Sequence[LayerCache]
    attn_metadata: Step
    input_embeddings: Tensor | None = None
    vision_inputs: Mapping[str, Any] | None = None


class StepContextManager:
    """What a model's class is given as `ctx_mgr`."""

    def __init__(self) -> None:
        self.context: StepContext | None = None

    def current_context(self) -> StepContext | None:
        """The step that is being run, or None."""
        return self.context


class CudaGraphMixin:
    """A base that lmdeploy's models have; it means nothing here."""

"""What flows compute, how they are merged, named and cut into segments; and the files made of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from flatlm.authoring.compute_graph.builder import build_flow
from flatlm.authoring.compute_graph.calls import DataName, WeightName
from flatlm.authoring.compute_graph.config import FlowConfig
from flatlm.authoring.compute_graph.graph import FlowGraph
from flatlm.authoring.compute_graph.model import FlowModel, build_on_meta
from flatlm.authoring.compute_graph.nodes import Gated, Node, Normed, Product, Turned, Weighted
from flatlm.authoring.compute_graph.pieces import flow_pieces
from flatlm.convert.in_memory import InMemory
from flatlm.convert.link import link_and_write
from flatlm.convert.signatures import signature_specs
from flatlm.convert.weights import WeightLayout
from flatlm.layers.config import CacheDtype
from flatlm.layers.kv_cache import CacheGeometry
from flatlm.quantize.recipes import get_recipe
from flatlm.utilities.configs.registry import build_config
from flatlm.utilities.reading import Reading
from flatlm.utilities.weights.slots import model_slots
from tests.authoring.compute_graph.odd_model import CONFIG, Odd, V, parameters, random_tensors, reference, shapes
from tests.examples.test_parity import logits_in_steps
from tests.models import Signatures, largest_difference, random_inputs, run_eager

SPECS = tuple(signature_specs((4,), prefill_logits=True))
HERE = Path(__file__)


def odd(*, stamped: bool = True, layers: int = CONFIG["layers"]) -> FlowConfig:
    known = shapes()
    for layer in range(CONFIG["layers"], layers):
        known |= {name.replace("h.0.", f"h.{layer}."): shape for name, shape in shapes().items() if name.startswith("h.0.")}
    return build_flow(Odd, {**CONFIG, "layers": layers}, known, HERE, stamped=stamped)


def loaded(config: FlowConfig, *, cache: CacheDtype = CacheDtype.FLOAT32, tensors: dict[str, torch.Tensor] | None = None) -> FlowModel:
    model = build_on_meta(config, CacheGeometry(32, 4, cache))
    model.load_state_dict(parameters(model, tensors or random_tensors()), strict=False, assign=True)
    model.tie()
    return model.requires_grad_(False)


def nodes(config: FlowConfig) -> list[Node]:
    return [node for use in config.chart.uses for node in config.chart.kinds[use.kind].nodes]


def count(config: FlowConfig, kind: type[Node]) -> int:
    return sum(isinstance(node, kind) for node in nodes(config))


@pytest.mark.parametrize("stamped", [True, False])
def test_every_operator_computes_what_it_says(stamped: bool) -> None:
    tensors, model = random_tensors(), loaded(odd(stamped=stamped))
    ids = torch.randint(0, V, (1, 24), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    expected = reference(tensors, ids[0].long())
    assert float(expected.std()) > 0.1
    for steps in ([24], [1] * 24, [9, 1, 1, 13]):
        assert float((logits_in_steps(model, ids, steps) - expected).abs().max()) <= 1e-4


def test_products_of_one_value_are_merged_gates_fused_and_heads_turned_together() -> None:
    config = odd()
    layers = CONFIG["layers"]
    products = [node.module for node in nodes(config) if isinstance(node, Product)]
    own = ["attention.qkv", "feed_forward.side", "attention.output", "feed_forward.gate_up", "feed_forward.down"]
    assert products == [f"blocks.{{}}.{name}" for name in own] * layers + ["lm_head"]
    assert count(config, Gated) == layers
    assert count(config, Turned) == 2 * layers  # queries are normalised before: they are not beside the keys
    assert count(config, Normed) == 2 * layers + 1
    merged = {slot.name: [part.tensor for part in slot.parts] for slot in config.slots}
    assert merged["blocks.1.attention.qkv.weight"] == ["h.1.v.weight", "h.1.k.weight", "h.1.q.weight"]
    assert merged["blocks.1.attention.qkv.bias"] == ["h.1.v.bias", "h.1.k.bias", "h.1.q.bias"]
    assert merged["blocks.2.feed_forward.gate_up.weight"] == ["h.2.gate", "h.2.up"]
    assert merged["lm_head.bias"] == ["lm_head.bias"] and "lm_head.weight" not in merged
    assert merged["embedding.weight"] == ["wte"] and merged["position_embedding.weight"] == ["wpe"]
    assert not any("unused" in tensor for tensors in merged.values() for tensor in tensors)
    assert config.tied_head and config.max_positions == 32 and config.vocab_size == V and config.embedding_dim == 32


def test_what_is_computed_for_nothing_is_left_out_on_purpose() -> None:
    assert {"h.0.unused", "h.2.unused", "*.inv_freq"} <= set(odd().ignored)


def test_layers_are_one_kind_however_many_there_are() -> None:
    few, many = odd(layers=2), odd(layers=30)
    assert few.chart.kinds == many.chart.kinds and len(many.chart.kinds) == 3
    assert [use.layer for use in many.chart.uses] == [None, *range(30), None]
    assert len(many.blocks) == 30 and len(many.block_kinds) == 1
    names = [piece.name for piece in flow_pieces(build_on_meta(many, CacheGeometry(32)), SPECS)]
    assert names == [f"{spec.name}/{part}" for spec in SPECS for part in ("step", "segment_0", "segment_1", "segment_2")]


def test_a_prefill_without_logits_has_no_head() -> None:
    specs = signature_specs((4,), prefill_logits=False)
    names = [piece.name for piece in flow_pieces(build_on_meta(odd(), CacheGeometry(32)), specs)]
    assert "prefill_4/segment_2" not in names and "decode/segment_2" in names


def test_layers_that_differ_are_kinds_of_their_own() -> None:
    class OneOddScale(Odd):
        def FusedAttention(self, *arguments: object) -> None:  # noqa: N802
            scale = 0.7 if arguments[1].name == "pastKey.1" else arguments[9]  # type: ignore[attr-defined]
            super().FusedAttention(*arguments[:9], scale, *arguments[10:])  # type: ignore[arg-type]

    chart = build_flow(OneOddScale, CONFIG, shapes(), HERE).chart
    assert len(chart.kinds) == 4 and [use.kind for use in chart.uses] == [0, 1, 2, 1, 3]


def renamed(old: str, new: str) -> FlowConfig:
    """The odd model, its layers' tensors called otherwise."""

    def spelt(name: str) -> str:
        return name.replace(old, new) if name.startswith("h.") else name

    def respelt(argument: object) -> object:
        return replace(argument, name=spelt(argument.name)) if isinstance(argument, WeightName) else argument

    class Spelt(Odd):
        def build(self) -> None:
            super().build()
            self.graph = [replace(call, arguments=tuple(map(respelt, call.arguments))) for call in self.graph]

    return build_flow(Spelt, CONFIG, {spelt(name): shape for name, shape in shapes().items()}, HERE)


def test_names_without_numbers_make_one_segment() -> None:
    config = renamed("h.", "h_")
    assert len(config.chart.kinds) == 1 and len(config.blocks) == CONFIG["layers"]
    modules = [node.module for node in nodes(config) if isinstance(node, Weighted)]
    assert len(set(modules)) == len(modules)  # where a better name was taken, the tensor's own
    assert {"flow.attention.norm", "flow.attention.h_1_norm", "flow.attention.h_2_o", "flow.feed_forward.down", "lm_head"} <= set(modules)


@pytest.mark.parametrize("name", ["half", "type", "forward", "training"])
def test_tensors_may_be_called_as_what_modules_have(name: str) -> None:
    config = renamed(".side.", f".{name}.")
    build_on_meta(config, CacheGeometry(32))
    assert f"blocks.{{}}.feed_forward.{name}_linear" in [node.module for node in nodes(config) if isinstance(node, Weighted)]
    assert len(config.chart.kinds) == 3


def test_products_of_different_layers_stay_apart_where_they_read_one_value() -> None:
    class Fed(Odd):
        def FusedAttention(self, *arguments: object) -> None:  # noqa: N802
            super().FusedAttention(*arguments)  # type: ignore[arg-type]
            layer = self.weight["h."][str(arguments[1].name).removeprefix("pastKey.")]  # type: ignore[attr-defined]
            self.Linear(self.data["first"], layer[".fed"], None, self.data["fed"])
            self.AddTo(self.data["x"], self.data["fed"])

    known = shapes() | {f"h.{layer}.fed": (32, 32) for layer in range(CONFIG["layers"])}
    chart = build_flow(Fed, CONFIG, known, HERE).chart
    assert [use.layer for use in chart.uses] == [None, *range(CONFIG["layers"]), None] and len(chart.kinds) == 3


def test_a_bias_that_the_checkpoint_lacks_is_none_and_keeps_its_product_apart() -> None:
    tensors = {name: value for name, value in random_tensors().items() if not name.endswith(".v.bias")}
    config = build_flow(Odd, CONFIG, {name: tuple(value.shape) for name, value in tensors.items()}, HERE)
    model = loaded(config, tensors=tensors)
    ids = torch.arange(12, dtype=torch.int32)[None]
    zeros = {f"h.{layer}.v.bias": torch.zeros(shapes()["h.0.v.bias"]) for layer in range(CONFIG["layers"])}
    assert float((logits_in_steps(model, ids, [12]) - reference({**tensors, **zeros}, ids[0].long())).abs().max()) <= 1e-4
    merged = {slot.name: [part.tensor for part in slot.parts] for slot in config.slots}
    assert merged["blocks.0.attention.k_q.weight"] == ["h.0.k.weight", "h.0.q.weight"]
    assert merged["blocks.0.attention.v.weight"] == ["h.0.v.weight"] and "blocks.0.attention.v.bias" not in merged


def test_a_weight_that_all_layers_share_makes_one_segment() -> None:
    class Shared(Odd):
        def RMSNorm(self, x: DataName, weight: WeightName, eps: float, output: DataName) -> None:  # noqa: N802
            shared = self.weight["norm"] if weight.name.endswith(".norm") else weight
            super().RMSNorm(x, shared, eps, output)

    config = build_flow(Shared, CONFIG, shapes(), HERE)
    assert len(config.chart.kinds) == 1
    assert [slot.name for slot in config.slots].count("flow.attention.norm.weight") == 1


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Signatures]:
    """The same model exported with its layers stamped, and as one piece."""
    folder, found = tmp_path_factory.mktemp("files"), {}
    for name, stamped in (("stamped", True), ("whole", False)):
        model = loaded(odd(stamped=stamped))
        sources = {key: InMemory(value.data) for key, value in model.named_parameters()}
        with (folder / name).open("w+b") as file:
            graph = FlowGraph(model.config, model.geometry, SPECS).stamp()
            link_and_write(graph, WeightLayout(sources, get_recipe("none")), file.fileno())
        found[name] = Signatures(folder / name)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("start", [0, 7])
def test_the_stamped_file_equals_the_whole_one_and_the_eager_model(files: dict[str, Signatures], spec, start: int) -> None:
    model = loaded(odd())
    inputs = random_inputs(model, spec.tokens, start=start)
    stamped, whole = (files[name].run(spec.name, inputs) for name in ("stamped", "whole"))
    assert float(np.abs(stamped["logits"]).max()) > 0.5
    assert largest_difference(stamped, whole) <= 1e-5
    assert largest_difference(stamped, run_eager(model, inputs, logits=True)) <= 1e-4


def test_smaller_caches_are_as_the_decoders(tmp_path: Path) -> None:
    """A flow takes whatever cache there is: float16 and int8 ones stay near."""
    ids = torch.randint(0, V, (1, 12), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    exact = logits_in_steps(loaded(odd()), ids, [1] * 12)
    for dtype, bound in ((CacheDtype.FLOAT16, 0.02), (CacheDtype.INT8, 0.3)):
        error = float((logits_in_steps(loaded(odd(), cache=dtype), ids, [1] * 12) - exact).abs().max())
        assert 0 < error < bound * float(exact.std()), (dtype, error)


def test_a_written_llama_has_the_weights_of_the_familys_own(shared: Path) -> None:
    """Name for name, tensor for tensor, row for row: recipes written for one are recipes for the other."""
    checkpoint = shared / "checkpoints" / "stories260K"
    written = build_config(checkpoint, Reading(custom=HERE.parent / "custom" / "llama_written.py"))[0]
    own, builder = build_config(checkpoint)
    slots = {slot.name: slot.parts for slot in model_slots(own, builder.tensor_names)}
    assert {slot.name: slot.parts for slot in written.slots} == slots
    assert len(slots) > 20

"""Checkpoints that GPTQ made, as AutoGPTQ, GPTQModel and optimum save them.

For a linear X with C inputs and R outputs, b bits, n = 32 / b numbers to a word, the lowest bits first:
`X.qweight` int32 [C / n, R] packs n neighbouring inputs, `X.qzeros` int32 [G, R / n] packs the zero points of n neighbouring outputs,
`X.scales` [G, R], `X.g_idx` int32 [C] the group of each input. weight[r, c] = (q[c, r] - zero[g, r]) * scale[g, r].

Format "gptq" stores zero points less one (0 as the largest number), "gptq_v2" as they are. Some quantizers say "gptq" and store them as
they are: where `sym` is true the zero point can only be the middle, so one that is stored as the middle is not less one.
https://github.com/AutoGPTQ/AutoGPTQ/pull/640, https://github.com/vllm-project/vllm/pull/38966
"""

import torch
from torch import Tensor

from flatlm.errors import ConfigError
from flatlm.utilities.checkpoints.packed import (
    Grid,
    QuantizedMatrix,
    WholeTensors,
    bits_of,
    centred,
    check_member,
    finish,
    group_size_of,
    matrix_shape,
    unpack,
)
from flatlm.utilities.checkpoints.store import TensorStore
from flatlm.utilities.configs.config_reader import ConfigReader

INERT = """
    act_group_aware backend batch_size block_name_to_quantize cache_block_outputs damp_auto_increment damp_percent dataset disable_exllama
    exllama_config failsafe lm_head max_input_length meta model_file_base_name model_name_or_path model_seqlen
    modules_in_block_to_quantize modules_to_not_convert module_name_preceding_first_block mse offload_to_disk offload_to_disk_path
    pack_impl quant_method static_groups tokenizer true_sequential use_cuda_fp16 use_exllama
""".split()  # noqa: SIM905 - a table that reads better as words
"""How the weights were found, which kernels are to run them, and which layers they are: the tensors say that themselves."""


def open_gptq(store: TensorStore, settings: ConfigReader) -> list[QuantizedMatrix]:
    """The quantized weights; see packed.Opener."""
    bits, group_size = bits_of(settings, "bits", (2, 4, 8)), group_size_of(settings)
    act_order, symmetric = settings.boolean("desc_act", False), settings.boolean("sym", True)
    formats = {"gptq": True, "gptq_v2": False}
    less_one = settings.choice("checkpoint_format" if settings.has("checkpoint_format") else "format", formats, "gptq")
    settings.skip("format")
    settings.choice("pack_dtype", {"int32": None}, "int32")
    if settings.boolean("is_marlin_format", False):
        raise settings.wrong("is_marlin_format", "is not supported; supported is the gptq format")
    overrides = settings.nested("dynamic")
    if overrides and (changed := [pattern for pattern in overrides.values if not pattern.startswith("-:")]):
        raise ConfigError(
            f"{overrides.source}: {changed[0]!r} changes the settings of some layers, which FlatLM does not read; "
            "supported are patterns that leave layers out (-:)"
        )
    finish(settings, INERT)
    whole, matrices = WholeTensors(store), list[QuantizedMatrix]()
    for name, record in store.tensors.items():
        if name.endswith(".qweight"):
            weight = f"{name.removesuffix('qweight')}weight"
            words, rows = matrix_shape(record, weight)
            columns = words * 32 // bits
            matrix = GptqMatrix(weight, store, (rows, columns), bits=bits, group_size=group_size or columns)
            matrices.append(matrix.check(whole, less_one=less_one, symmetric=symmetric, act_order=act_order))
    return matrices


class GptqMatrix(QuantizedMatrix):
    """X.weight of X.qweight, X.qzeros, X.scales and X.g_idx."""

    def check(self, whole: WholeTensors, *, less_one: bool, symmetric: bool, act_order: bool) -> "GptqMatrix":
        """Itself, once its tensors are found to fit each other."""
        self.whole, self.less_one, self.symmetric = whole, less_one, symmetric
        self._one: bool | None = None
        prefix = self.name.removesuffix("weight")
        self.qweight, self.qzeros, self.scales, self.g_idx = (prefix + kind for kind in ("qweight", "qzeros", "scales", "g_idx"))
        rows, columns = self.shape
        number = 32 // self.bits
        check_member(self.store, self.name, self.qweight, [(columns // number, rows)], [torch.int32])
        check_member(self.store, self.name, self.scales, [(self.groups, rows)])
        check_member(self.store, self.name, self.qzeros, [(self.groups, -(-rows // number))], [torch.int32])
        self.ordered = not act_order and self.g_idx not in self.store.tensors
        if not self.ordered:
            check_member(self.store, self.name, self.g_idx, [(columns,)], [torch.int32, torch.int64])
        return self

    @property
    def members(self) -> tuple[str, ...]:
        return (self.qweight, self.qzeros, self.scales, *(() if self.ordered else (self.g_idx,)))

    def integers(self, start: int, stop: int) -> Tensor:
        return centred(unpack(self.whole.get(self.qweight)[:, start:stop].t(), self.bits), self.bits)

    def grid(self, start: int, stop: int) -> Grid:
        zeros = self._zeros(start, stop)
        if self._add_one():
            zeros = (zeros + 1) & (2**self.bits - 1)
        return Grid(self.whole.get(self.scales)[:, start:stop].t().to(torch.float32), centred(zeros, self.bits))

    def _zeros(self, start: int, stop: int) -> Tensor:
        """The rows' zero points as they are stored, uint8 [r, G]."""
        number = 32 // self.bits
        first = start // number
        zeros = unpack(self.whole.get(self.qzeros)[:, first : -(-stop // number)], self.bits)
        return zeros[:, start - first * number : stop - first * number].t().contiguous()

    def _add_one(self) -> bool:
        if self._one is None:
            middle = self.symmetric and bool((self._zeros(0, self.shape[0]) == 2 ** (self.bits - 1)).all())
            self._one = self.less_one and not middle
        return self._one

    def read_column_groups(self) -> Tensor | None:
        if self.ordered:
            return None
        groups = self.store.read(self.g_idx).to(torch.int64)
        if int(groups.min()) < 0 or int(groups.max()) >= self.groups:
            raise self.error(self.g_idx, f"names groups from {int(groups.min())} to {int(groups.max())}, and there are {self.groups}")
        return groups

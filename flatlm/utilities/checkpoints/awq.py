"""Checkpoints that AWQ made, in the layout called "gemm" (AutoAWQ, GPTQModel, llm-compressor's converters).

For a linear X with C inputs and R outputs: `X.qweight` int32 [C, R / 8] and `X.qzeros` int32 [G, R / 8] pack eight neighbouring outputs to
a word, four bits each from the lowest on, in the order 0 2 4 6 1 3 5 7; `X.scales` is [G, R].
weight[r, c] = (q[c, r] - zero[g, r]) * scale[g, r].
"""

import torch
from torch import Tensor

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

BITS = 4
PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word each of eight neighbours is."""

INERT = """
    batch_size damp_percent dataset desc_act do_fuse exllama_config fuse_max_seq_len meta model_seqlen modules_to_fuse
    modules_to_not_convert quant_method sym tokenizer true_sequential act_group_aware cache_block_outputs zero_point
    max_input_length block_name_to_quantize module_name_preceding_first_block modules_in_block_to_quantize
""".split()  # noqa: SIM905 - a table that reads better as words
"""How the weights were found, which kernels are to run them, and which layers they are. The zero points are always stored."""


def open_awq(store: TensorStore, settings: ConfigReader) -> list[QuantizedMatrix]:
    """The quantized weights; see packed.Opener."""
    bits_of(settings, "bits" if settings.has("bits") or not settings.has("w_bit") else "w_bit", (BITS,))
    group_size = group_size_of(settings, "q_group_size" if settings.has("q_group_size") else "group_size")
    if isinstance(layout := settings.values.get("version"), str) and layout.lower() == "gemm":
        settings.skip("version")  # AutoAWQ writes it in either case
    else:
        settings.choice("version", {"gemm": None}, "gemm")
    settings.choice("format", {"gemm": None}, "gemm")
    settings.choice(
        "backend", dict.fromkeys(("auto", "autoawq", "gemm", "exllama_v1", "exllama_v2", "torch_awq", "triton", "machete")), "auto"
    )
    finish(settings, INERT)
    whole, matrices = WholeTensors(store), list[QuantizedMatrix]()
    for name, record in store.tensors.items():
        if name.endswith(".qweight"):
            weight = f"{name.removesuffix('qweight')}weight"
            columns, words = matrix_shape(record, weight)
            matrix = AwqMatrix(weight, store, (words * 8, columns), bits=BITS, group_size=group_size or columns)
            matrices.append(matrix.check(whole))
    return matrices


class AwqMatrix(QuantizedMatrix):
    """X.weight of X.qweight, X.qzeros and X.scales."""

    def check(self, whole: WholeTensors) -> "AwqMatrix":
        """Itself, once its tensors are found to fit each other."""
        self.whole = whole
        prefix = self.name.removesuffix("weight")
        self.qweight, self.qzeros, self.scales = (prefix + kind for kind in ("qweight", "qzeros", "scales"))
        rows, columns = self.shape
        check_member(self.store, self.name, self.qweight, [(columns, rows // 8)], [torch.int32])
        check_member(self.store, self.name, self.scales, [(self.groups, rows)])
        check_member(self.store, self.name, self.qzeros, [(self.groups, rows // 8)], [torch.int32])
        return self

    @property
    def members(self) -> tuple[str, ...]:
        return (self.qweight, self.qzeros, self.scales)

    def integers(self, start: int, stop: int) -> Tensor:
        return self._columns(self.qweight, start, stop)

    def grid(self, start: int, stop: int) -> Grid:
        scales = self.whole.get(self.scales)[:, start:stop].t().to(torch.float32)
        return Grid(scales, self._columns(self.qzeros, start, stop))

    def _columns(self, member: str, start: int, stop: int) -> Tensor:
        """Columns [start, stop) of a packed tensor [n, R / 8], as rows: centred int8 [stop - start, n]."""
        first = start // 8
        words = self.whole.get(member)[:, first : -(-stop // 8)]
        numbers = unpack(words, BITS).view(*words.shape, 8)[:, :, list(PLACES)].reshape(words.shape[0], 8 * words.shape[1])
        return centred(numbers[:, start - 8 * first : stop - 8 * first].t().contiguous(), BITS)

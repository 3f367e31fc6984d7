"""`ComputeGraph`: the class that an author's `build` describes a model with. It records calls; nothing is computed here.

The operators, their signatures and the names of the inputs are those of fastllm's custom models (docs/custom.md, docs/custom_op.md of
ztxz16/fastllm), so that a file written for one is a file for the other.
"""

import difflib
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from flatlm.errors import CustomModelError

INPUTS = ("inputIds", "positionIds", "attentionMask", "sin", "cos", "atype", "seqLens")
"""Data that is there before the first call; beside it pastKey.<i> and pastValue.<i>."""
PAST = ("pastKey.", "pastValue.")


class _NameOnly:
    """What Python would make of a name that can be indexed for ever: no list, no container, no truth."""

    instead: ClassVar[str]

    def __iter__(self) -> NoReturn:
        raise TypeError(f"{self} is no list: {self.instead}")

    def __contains__(self, part: object) -> NoReturn:
        raise TypeError(f"what {self} has cannot be asked: {self.instead}")

    def __bool__(self) -> NoReturn:
        raise TypeError(f"{self} is neither true nor false: {self.instead}")


@dataclass(frozen=True)
class DataName(_NameOnly):
    """`data[name]`: an input or an intermediate result. Indexing on joins the parts: `data["pastKey."][0]` is pastKey.0."""

    instead = "data are names only, and nothing is computed in build()"
    name: str = ""

    def __getitem__(self, part: object) -> "DataName":
        return DataName(f"{self.name}{part}")

    def __str__(self) -> str:
        return f'data["{self.name}"]'

    @property
    def is_input(self) -> bool:
        return self.name in INPUTS or self.name.startswith(PAST)


@dataclass(frozen=True)
class WeightName(_NameOnly):
    """`weight[name]`: a tensor of the checkpoint. Indexing on joins the parts: `weight["layers."][0][".up.weight"]`."""

    instead = "weights are names only; a bias that the checkpoint lacks is none by itself"
    name: str = ""

    def __getitem__(self, part: object) -> "WeightName":
        return WeightName(f"{self.name}{part}")

    def __str__(self) -> str:
        return f'weight["{self.name}"]'


@dataclass(frozen=True)
class Call:
    """The use of an operator: the `number`-th of the graph, from 1; `where`: file and line."""

    number: int
    operator: str
    arguments: tuple[DataName | WeightName | float | None, ...]
    where: str

    def wrong(self, what: str) -> CustomModelError:
        """The error for it."""
        listed = ", ".join(str(argument) for argument in self.arguments)
        return CustomModelError(f"{self.where}: call {self.number}, {self.operator}({listed}): {what}")


class ComputeGraph:
    """A model as a flow of operators. Subclasses have `build`, which reads `config`, `weight` and `data` and calls the operators.

    `config` is config.json as a dict, which `build` may change and must give `max_positions`; what it has written to `data["logits"]` is
    the result. An operator's result goes to the data that is named for it, in place where that is what it reads too. Shapes: [1, T, D] for
    T tokens, [1, T, heads, H] after ExpandHead. `ignored_tensors`: patterns (fnmatch) of tensors in the checkpoint that no number
    depends on.
    """

    ignored_tensors: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        self.config: dict[str, Any] = {}
        self.weight = WeightName()
        self.data = DataName()
        self.graph: list[Call] = []

    def build(self) -> None:
        """Describe the flow."""
        raise NotImplementedError(f"{type(self).__name__} has no build method")

    def AddTo(self, input0: DataName, input1: DataName, alpha: float = 1.0) -> None:  # noqa: N802 - fastllm's name, as all below
        """Let input0 += input1 * alpha, of equal shapes."""
        self._call("AddTo", _data(input0), _data(input1), _number(alpha))

    def DataTypeAs(self, input: DataName, input1: DataName) -> None:  # noqa: A002, N802
        """Give `input` the data type of `input1`. All data is float32 here: nothing changes."""
        self._call("DataTypeAs", _data(input), _data(input1))

    def Embedding(self, input: DataName, weight: WeightName, output: DataName) -> None:  # noqa: A002, N802
        """Rows of weight [V, D] for inputIds, or for positionIds: [1, T, D]."""
        self._call("Embedding", _data(input), _weight(weight), _data(output))

    def ExpandHead(self, input: DataName, headDim: int) -> None:  # noqa: A002, N802, N803
        """The last dimension as [-1, headDim], in place: [1, T, N * H] becomes [1, T, N, H]."""
        self._call("ExpandHead", _data(input), _whole(headDim))

    def FusedAttention(  # noqa: N802
        self,
        q: DataName,
        k: DataName,
        v: DataName,
        curk: DataName,
        curv: DataName,
        original: DataName,
        mask: DataName,
        output: DataName,
        seqLens: DataName,  # noqa: N803
        scale: float,
        maskType: int = 0,  # noqa: N803
        unitLen: int = 128,  # noqa: N803
    ) -> None:
        """Causal attention of q [1, T, N, H] over the cache k, v with the step's own curk, curv [1, T, K, H] appended: [1, T, N * H].

        Query heads share key heads where K < N. `scale` multiplies the scores. `original`: what has the shape [1, T, ...] that the output
        is given. `unitLen`: how fastllm's caches grow; a file's caches are whole from the beginning.
        """
        names = (q, k, v, curk, curv, original, mask, output, seqLens)
        self._call("FusedAttention", *map(_data, names), _number(scale), _whole(maskType), _whole(unitLen))

    def Linear(self, input: DataName, weight: WeightName, bias: WeightName | None, output: DataName) -> None:  # noqa: A002, N802
        """Take input [..., in] times weight [out, in], plus bias [out] if the checkpoint has one of that name: [..., out]."""
        self._call("Linear", _data(input), _weight(weight), None if bias is None else _weight(bias), _data(output))

    def LlamaRotatePosition2D(  # noqa: N802
        self,
        input: DataName,  # noqa: A002
        positionIds: DataName,  # noqa: N803
        sin: DataName,
        cos: DataName,
        rotaryDim: int,  # noqa: N803
    ) -> None:
        """Turn entries i and i + H/2 of each head of input [1, T, N, H], for i below rotaryDim, in place: H // 2 turns them all."""
        self._call("LlamaRotatePosition2D", _data(input), _data(positionIds), _data(sin), _data(cos), _whole(rotaryDim))

    def MulTo(self, input0: DataName, input1: DataName) -> None:  # noqa: N802
        """Let input0 *= input1, of equal shapes."""
        self._call("MulTo", _data(input0), _data(input1))

    def RMSNorm(self, input: DataName, weight: WeightName, eps: float, output: DataName) -> None:  # noqa: A002, N802
        """Divide input by the root of its mean square plus eps, and multiply it by weight, along the last dimension."""
        self._call("RMSNorm", _data(input), _weight(weight), _number(eps), _data(output))

    def Silu(self, input: DataName, output: DataName) -> None:  # noqa: A002, N802
        """Give input * sigmoid(input)."""
        self._call("Silu", _data(input), _data(output))

    def SplitLastTokenStates(self, input: DataName, seqLens: DataName, output: DataName) -> None:  # noqa: A002, N802, N803
        """The last token of each text. A file gives the logits of all tokens that a signature is asked for: it cuts where it likes."""
        self._call("SplitLastTokenStates", _data(input), _data(seqLens), _data(output))

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_") or not name[:1].isupper():
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        close = difflib.get_close_matches(name, OPERATORS, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise CustomModelError(f"{_where()}: there is no operator {name}: {hint}there are {', '.join(OPERATORS)}")

    def _call(self, operator: str, *arguments: "DataName | WeightName | float | _Wrong | None") -> None:
        good = tuple(argument.given if isinstance(argument, _Wrong) else argument for argument in arguments)
        call = Call(len(self.graph) + 1, operator, good, _where())
        for argument in arguments:
            if isinstance(argument, _Wrong):
                raise call.wrong(f"{argument.given!r} is not {argument.wanted}")
        self.graph.append(call)


OPERATORS = (
    "AddTo",
    "DataTypeAs",
    "Embedding",
    "ExpandHead",
    "FusedAttention",
    "Linear",
    "LlamaRotatePosition2D",
    "MulTo",
    "RMSNorm",
    "Silu",
    "SplitLastTokenStates",
)


@dataclass(frozen=True)
class _Wrong:
    """An argument of the wrong kind, and what was wanted."""

    given: Any
    wanted: str


def _data(value: object) -> DataName | _Wrong:
    return value if isinstance(value, DataName) else _Wrong(value, 'data: use data["name"]')


def _weight(value: object) -> WeightName | _Wrong:
    return value if isinstance(value, WeightName) else _Wrong(value, 'a weight: use weight["name"]')


def _number(value: object) -> float | _Wrong:
    """A number, or a text that is one, as config.json may hold."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return _Wrong(value, "a number")
    return number if math.isfinite(number) else _Wrong(value, "a finite number")


def _whole(value: object) -> int | _Wrong:
    """A positive whole number or 0, also as a float, as a division gives it."""
    number = _number(value)
    if isinstance(number, _Wrong) or number < 0 or number != int(number):
        return _Wrong(value, "a whole number")
    return int(number)


def _where() -> str:
    """File and line of the author's call: the nearest frame that is not of this file."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename == __file__ and frame.f_back is not None:
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"

"""Find the one attention of every block of a ViT while it runs, fused or computed step by step."""

import contextlib
import functools
import threading
from collections.abc import Container, Iterator, Sequence
from typing import Any, NamedTuple

from timm.models.cait import LayerScaleBlockClassAttn
from timm.models.vision_transformer import ParallelThingsBlock
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from common.errors import UserError

FUSED = "scaled_dot_product_attention"
SOFTMAX = "softmax"
PRODUCTS = ("matmul", "__matmul__")
SAME_WEIGHTS = ("to", "type", "type_as", "float", "double", "half", "bfloat16", "contiguous", "clone")
"""What may happen to attention weights between softmax and product, besides dropout in eval mode."""
MIXING = ("linear", "permute")
"""What talking heads do between softmax and product, which adds the weights of several heads up."""
NAMES = frozenset((FUSED, SOFTMAX, "dropout", *PRODUCTS, *SAME_WEIGHTS, *MIXING))
"""Functions that matter here; others run without a look."""


class Weights(NamedTuple):
    """A = softmax(S). Both are kept, so that the id of A stays unique."""

    A: Tensor
    S: Tensor | None
    """None if heads were mixed after the softmax: A is then no softmax."""
    versions: tuple[int, int]
    """Of A and S: operations in place since then would change what was captured."""


class AttentionCalls(TorchFunctionMode):
    """Watches the blocks in this thread. `attend` is called for every attention that runs in one of `layers`."""

    def __init__(self, blocks: Sequence[nn.Module], layers: Container[int], pooling: bool = False) -> None:
        """`pooling`: the only block is an attention pooling, whose queries are not the tokens."""
        super().__init__()
        self.blocks, self.layers, self.pooling = list(blocks), layers, pooling
        self.thread = threading.get_ident()
        self.started = 0  # counts calls: the same module may stand at several depths
        self.index: int | None = None  # of the running block, if it is one of `layers`
        self.found = 0  # attentions in it so far
        self.keys: tuple[int, ...] = ()  # (B, N) of its input
        self.queries: tuple[int, ...] = ()
        self.weights: dict[int, Weights] = {}  # by the id of A

    def attend(self, func: Any, args: Any, kwargs: Any, weights: Weights | None) -> Tensor:
        """Run the attention. `weights`: None if it is fused; otherwise func(*args) is the product of A and v."""
        raise NotImplementedError

    def finish(self) -> None:
        """Called after the forward pass."""

    def refuse(self, why: str, index: int | None = None) -> UserError:
        where = "attn_pool" if self.pooling else f"blocks.{self.index if index is None else index}"
        return UserError(f"{where}: {why}; choose a method without attention")

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Raises UserError unless each block runs once, in order, with one attention (one per parallel branch)."""
        with contextlib.ExitStack() as stack:
            for block in dict.fromkeys(self.blocks):
                stack.enter_context(block.register_forward_pre_hook(self._start))
                stack.enter_context(block.register_forward_hook(self._end))
            stack.enter_context(self)
            yield
        if self.started < len(self.blocks):
            raise self.refuse("it did not run as a module, so its attention cannot be read", self.started)
        self.finish()

    def _start(self, block: nn.Module, args: Any) -> None:
        if threading.get_ident() != self.thread:
            return
        if self.started >= len(self.blocks) or self.blocks[self.started] is not block:
            raise self.refuse("the blocks do not run once each, in order", min(self.started, len(self.blocks) - 1))
        self.index = self.started if self.started in self.layers else None
        self.keys = self.queries = tuple(args[0].shape[:2]) if args else ()
        if isinstance(block, LayerScaleBlockClassAttn):  # reads the patches and the class token, its second argument
            self.queries = tuple(args[1].shape[:2])
            self.keys = (self.keys[0], self.keys[1] + self.queries[1])
        self.started, self.found = self.started + 1, 0

    def _end(self, block: nn.Module, *_: Any) -> None:
        if threading.get_ident() != self.thread or self.index is None:
            return
        promised = len(block.attns) if isinstance(block, ParallelThingsBlock) else 1
        if self.found < promised:
            raise self.refuse("its attention is neither scaled_dot_product_attention nor softmax(scores) @ v")
        if self.found > promised:
            raise self.refuse(f"it has {self.found} attentions in sequence, and no single attention matrix")
        self.index = None  # what runs between blocks and after them, such as a pooling, is not recorded
        self.weights.clear()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.index is None:
            return func(*args, **kwargs)
        name = _name(func)
        if name not in NAMES:
            return func(*args, **kwargs)
        if name == FUSED:
            return self._attended(func, args, kwargs, None)
        known = self.weights.get(id(args[0])) if args else None
        if known is not None and name in PRODUCTS and len(args) == 2:
            if _versions(known.A, known.S) != known.versions:
                raise self.refuse("it changes attention scores or weights in place after the softmax")
            return self._attended(func, args, kwargs, known)
        out = func(*args, **kwargs)
        if name == SOFTMAX and args and out.ndim == 4 and kwargs.get("dim", args[1:2]) in (-1, 3, (-1,), (3,)):
            self._keep(out, args[0])
        elif known is not None and (name in SAME_WEIGHTS or _is_idle_dropout(name, args, kwargs)):
            self._keep(out, known.S)
        elif known is not None and name in MIXING:
            self._keep(out, None)
        return out

    def _keep(self, A: Tensor, S: Tensor | None) -> None:
        if id(A) not in self.weights:  # such as A.float() of a float32 A, which is A, maybe changed in place
            self.weights[id(A)] = Weights(A, S, _versions(A, S))

    def _attended(self, func: Any, args: Any, kwargs: Any, weights: Weights | None) -> Tensor:
        out = self.attend(func, args, kwargs, weights)
        self.found += 1
        return out


@functools.cache
def _name(func: Any) -> str:
    return str(getattr(func, "__name__", "")).split(".")[0]  # torch.ops has names such as softmax.int


def version(t: Tensor) -> int:
    """The number of operations in place on the tensor so far; 0 for an inference tensor, which does not count them."""
    return 0 if t.is_inference() else t._version


def _versions(A: Tensor, S: Tensor | None) -> tuple[int, int]:
    return version(A), 0 if S is None else version(S)


def _is_idle_dropout(name: str, args: Any, kwargs: Any) -> bool:
    """Whether it is F.dropout(A, p, training) or torch.dropout(A, p, train) that does nothing."""
    active = kwargs.get("training", kwargs.get("train", args[2] if len(args) > 2 else True))
    return name == "dropout" and not active

"""Half-precision tables on a processor without half-precision instructions, at about the speed of float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from torch.nn import functional as nnf
from torch.overrides import TorchFunctionMode

from longvid.precision import is_native

PRODUCTS: frozenset[Callable[..., Any]] = frozenset(
    {
        *(nnf.linear, nnf.scaled_dot_product_attention),
        *(nnf.conv1d, nnf.conv2d, nnf.conv3d, torch.conv1d, torch.conv2d, torch.conv3d),
        *(torch.einsum, torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm),
        *(torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.mm, torch.Tensor.bmm),
    }
)
"""What is slow without instructions. Everything else is computed element by element, and no slower than elsewhere."""

Item = TypeVar("Item")


class RoundedProducts(TorchFunctionMode):
    """Matrix products of ``dtype`` as the instructions for it make them: operands as they are, sums in float32, the
    result rounded once. Without this mode such a processor takes a hundred times as long for the same.

    Attention's probabilities stay float32, where instructions round them before they meet the values.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        operands = (*args, *kwargs.values())
        if func not in PRODUCTS or not any(self._is_low(value) for value in operands):
            return func(*args, **kwargs)
        raised = {name: self._raised(value) for name, value in kwargs.items()}
        return func(*map(self._raised, args), **raised).to(self._dtype)

    def _is_low(self, value: Any) -> bool:
        return isinstance(value, torch.Tensor) and value.dtype is self._dtype

    def _raised(self, value: Any) -> Any:
        return value.float() if self._is_low(value) else value


def is_rounded(dtype: torch.dtype | None, device: str | torch.device | None) -> bool:
    """Whether products of ``dtype`` need RoundedProducts on ``device`` (None: the GPU when there is one)."""
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return dtype is not None and not is_native(dtype, where)


def with_products(
    items: Iterator[Item], dtype: torch.dtype | None, device: str | torch.device | None
) -> Iterator[Item]:
    """``items``, each made under RoundedProducts where that is needed; the mode never reaches the one who asks."""
    rounded = is_rounded(dtype, device)
    while True:
        with RoundedProducts(dtype) if rounded and dtype is not None else nullcontext():
            try:
                item = next(items)
            except StopIteration:
                return
        yield item

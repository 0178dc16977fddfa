"""Reading a Wan transformer while a Denoiser runs it: keys, values, and the subject's share of the text attention.

Forward hooks on norm and projection layers of chosen blocks, in place only inside ``with``; they change nothing. A
Denoiser folds frames into the batch axis, so what the hooks see is ``[R * F, S, N*D]``, R rows with the negative
prompt's first.

Shape letters: R rows of a call (guidance branches x samples), F latent frames, S tokens in a frame, L = F * S tokens,
P text tokens, N heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from longvid.errors import InputError
from longvid.models.denoiser import TextContext
from longvid.models.subject_mask import subject_probability


def last_third(num_layers: int) -> tuple[int, ...]:
    """Layers that stand in for a U-Net's up-blocks: the last third, one at least."""
    return tuple(range(min(num_layers - 1, num_layers * 2 // 3), num_layers))


def middle_half(num_layers: int) -> tuple[int, ...]:
    """Layers whose text attention tells best where things are: the middle half, one at least."""
    first = num_layers // 4
    return tuple(range(first, max(first + 1, num_layers * 3 // 4)))


def check_layers(layers: Sequence[int], num_layers: int, argument: str) -> tuple[int, ...]:
    """Sorted distinct layer indices.

    Raises:
        InputError: none, or one that the model does not have.
    """
    wanted = tuple(sorted(set(layers)))
    if not wanted or wanted[0] < 0 or wanted[-1] >= num_layers:
        raise InputError(f"{argument}={tuple(layers)}: must name layers between 0 and {num_layers - 1}")
    return wanted


@contextmanager
def _hooks(pairs: Iterator[tuple[nn.Module, Callable[[Tensor], None]]]) -> Iterator[None]:
    with ExitStack() as stack:
        for module, keep in pairs:
            handle = module.register_forward_hook(lambda _module, _inputs, output, keep=keep: keep(output))
            stack.callback(handle.remove)
        yield


@contextmanager
def tap_keys(
    transformer: Any,
    layers: Sequence[int],
    select: Callable[[Tensor], Tensor],
    *,
    values: bool = False,
    first_only: bool = False,
) -> Iterator[dict[str, dict[int, Tensor]]]:
    """Collect self-attention keys (normed, before RoPE) of ``layers`` in the calls inside ``with``.

    Args:
        select: what of ``[R * F, S, N*D]`` to keep; applied at once, so that the rest can be freed.
        values: collect values too.
        first_only: keep the first call's; otherwise the last call's.

    Yields:
        ``{"key": {layer: tensor}, "value": {layer: tensor}}``, with gradient where the call has it.

    Raises:
        InputError: values are asked for and the projections are fused.
    """
    found: dict[str, dict[int, Tensor]] = {"key": {}, "value": {}}

    def keep(kind: str, layer: int, output: Tensor) -> None:
        if not first_only or layer not in found[kind]:
            found[kind][layer] = select(output)

    def wanted() -> Iterator[tuple[nn.Module, Callable[[Tensor], None]]]:
        for layer in layers:
            attention = transformer.blocks[layer].attn1
            yield attention.norm_k, partial(keep, "key", layer)
            if not values:
                continue
            if attention.fused_projections:
                raise InputError("transformer: fused projections hide the values; call unfuse_qkv_projections()")
            yield attention.to_v, partial(keep, "value", layer)

    with _hooks(wanted()):
        yield found


class SubjectShare:
    """The subject's share of the text attention, one layer after the other."""

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._layers = 0

    def add(self, share: Tensor) -> None:
        self._total = share if self._total is None else self._total + share
        self._layers += 1

    @property
    def mean(self) -> Tensor:
        """Mean over layers, float32 ``[rows, L]``.

        Raises:
            RuntimeError: no call was made.
        """
        if self._total is None:
            raise RuntimeError("no text attention was seen: call the denoiser inside tap_subject()")
        return self._total / self._layers


@contextmanager
def tap_subject(
    transformer: Any, layers: Sequence[int], text: TextContext, positions: Sequence[Sequence[int]]
) -> Iterator[SubjectShare]:
    """Measure how much of each token's text attention goes to the subject, in the call inside ``with``.

    Only the conditional rows are looked at: the negative prompt has no subject.

    Args:
        layers: cross-attention layers to average over.
        text: what the call is given.
        positions: for each of ``text.batch`` rows, positions of the subject's words among the text tokens.
    """
    share = SubjectShare()

    def measure(layer: int, query: Tensor) -> None:
        key = text.layers[layer][0][-text.batch :]
        heads, head_dim = key.shape[2:]
        rows = query.detach().reshape(text.branches * text.batch, -1, heads, head_dim)[-text.batch :]
        with torch.no_grad():
            share.add(subject_probability(rows, key, positions))

    def wanted() -> Iterator[tuple[nn.Module, Callable[[Tensor], None]]]:
        for layer in layers:
            yield transformer.blocks[layer].attn2.norm_q, partial(measure, layer)

    with _hooks(wanted()):
        yield share

"""The subject's keys and values of finished frames, for windows that no longer see them.

Finished frames go into a FrameKVCache (one storage for every method, here with a policy of first and newest frames);
what the windows read of it are the rows under each frame's subject mask.

Shape letters: B samples, n remembered frames, S tokens in a frame, M appended tokens, N heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from longvid.cache import FrameKVCache
from longvid.cache.policies.bank import BankPolicy
from longvid.models.denoiser import Denoiser
from longvid.models.subject_attention import SubjectTokens, gather_subject


class SubjectBank:
    """Remembers ``sink + recent`` finished frames of some layers.

    Args:
        denoiser: whose keys they are.
        layers: self-attention layers that are remembered.
        sink, recent: first frames and newest frames.
        batch, height, width: of the latents.
        window_frames: latent frames of a window; the bank may not reach further back than a window is long.
        limit: tokens that a layer is given at most.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        layers: Sequence[int],
        *,
        sink: int,
        recent: int,
        batch: int,
        height: int,
        width: int,
        limit: int,
    ) -> None:
        self.layers, self.limit = tuple(layers), limit
        rotary = denoiser.rotary(height, width)
        self.cache = FrameKVCache(
            BankPolicy(sink=sink, recent=recent),
            layers=len(self.layers),
            batch=batch,
            heads=denoiser.heads,
            head_dim=denoiser.head_dim,
            rotary=rotary,
            dtype=denoiser.dtype,
            device=denoiser.device,
        )
        self._masks: dict[int, Tensor] = {}
        self._scores: dict[int, Tensor] = {}

    def commit(
        self,
        frame: int,
        keys: Mapping[int, Tensor],
        values: Mapping[int, Tensor],
        mask_BS: Tensor,
        score_BS: Tensor,
    ) -> None:
        """Remember a frame that leaves the queue.

        Args:
            frame: its number in the video; frames come in order.
            keys, values: layer to ``[B, S, N, D]``, keys before RoPE.
            mask_BS, score_BS: the subject's tokens, and how much of the subject each holds.
        """
        self.cache.begin(frame, 1)
        view = self.cache.view("commit")
        for store, layer in zip(self.cache.layers, self.layers, strict=True):
            store.read(view, keys[layer], keys[layer], values[layer])
        self.cache.commit()
        self._masks[frame], self._scores[frame] = mask_BS, score_BS
        self._forget()

    def clear(self) -> None:
        """Another subject: nothing is remembered."""
        self.cache.reset()
        self._forget()

    def _forget(self) -> None:
        resident = set(self.cache.resident)
        self._masks = {f: m for f, m in self._masks.items() if f in resident}
        self._scores = {f: s for f, s in self._scores.items() if f in resident}

    def tokens(self, window_frames: int) -> dict[int, SubjectTokens]:
        """Layer to the subject's tokens ``[B, M, N, D]``, rotated to just before a window; empty when none is known."""
        resident = self.cache.resident
        if not resident:
            return {}
        following = resident[-1] + 1
        self.cache.begin(following, 1, window=window_frames)
        try:
            view = self.cache.view("denoise")
            frames = view.key_frames[: len(self.cache.resident)]  # in the order of their keys in memory
            mask = torch.cat([self._masks[f] for f in frames], dim=1)
            if not bool(mask.any()):
                return {}
            scores = torch.cat([self._scores[f] for f in frames], dim=1)
            found = {}
            for store, layer in zip(self.cache.layers, self.layers, strict=True):
                keys = torch.cat([store.keys[:, a:b] for a, b in view.spans], dim=1)
                values = torch.cat([store.values[:, a:b] for a, b in view.spans], dim=1)
                found[layer] = gather_subject(keys, values, mask, scores=scores, limit=self.limit)
            return found
        finally:
            self.cache.abort()
            self._forget()

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Exact: tensors and JSON-able facts."""
        tensors, meta = self.cache.snapshot()
        tensors = {f"cache.{name}": value for name, value in tensors.items()}
        for frame, mask in self._masks.items():
            tensors[f"mask.{frame}"] = mask.clone()
            tensors[f"score.{frame}"] = self._scores[frame].clone()
        return tensors, deepcopy(meta)

    def load_state_dict(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        device = self.cache.layers[0].keys.device

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

        self.cache.restore(part("cache."), dict(meta))
        self._masks = {int(frame): mask.to(device) for frame, mask in part("mask.").items()}
        self._scores = {int(frame): score.to(device) for frame, score in part("score.").items()}

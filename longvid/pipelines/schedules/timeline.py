"""Where latent frames stand in a video with hard cuts: integers only.

A causal video VAE makes one video frame of the first latent frame it sees and `temporal` of every later one. A hard cut
begins anew: the decoder forgets, and the first latent frame of the scene is one video frame again::

    temporal 4, blocks of 3, a hard cut behind block 1
    latent    0  1  2 | 3  4  5 || 6  7  8 | 9 10 11
    video     0 1-4 ..| 9 ..    ||21 22-25 |30 ...          9 + 12 || 9 + 12 frames

So a cut costs `temporal` - 1 frames against flowing on, and a video of a given length may need a latent frame more.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timeline:
    """The scene that began with latent frame `latent` at video frame `video`."""

    temporal: int
    latent: int = 0
    video: int = 0

    def video_frame(self, latent: int) -> int:
        """First video frame of a latent frame of this scene: as many video frames are before it."""
        ahead = latent - self.latent
        return self.video + (1 + (ahead - 1) * self.temporal if ahead > 0 else 0)

    def latent_frame(self, video: int) -> int:
        """The latent frame of this scene that holds a video frame; the scene's first for what is before it."""
        ahead = video - self.video
        return self.latent + (1 + (ahead - 1) // self.temporal if ahead > 0 else 0)

    def latents_until(self, video_frames: int) -> int:
        """Latent frames that this scene needs for the video to have `video_frames` in all; at least 1."""
        return max(1, self.latent_frame(video_frames - 1) - self.latent + 1)

    def cut(self, latent: int) -> Timeline:
        """The scene that begins with `latent`."""
        return Timeline(self.temporal, latent, self.video_frame(latent))

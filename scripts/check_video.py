"""Check that a rendered video plays: every frame decodes, the length is right, the picture moves and matches its MD5s.

python scripts/check_video.py clip.mp4 --seconds 4
"""

from __future__ import annotations

import argparse
import sys
from itertools import pairwise
from pathlib import Path

import av
import numpy as np

from longvid.media.journal import read_sidecar


def check(path: Path, seconds: float) -> list[str]:
    """What is wrong with the video; empty when nothing is."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        rate, said = float(stream.average_rate or 0), stream.frames
        length = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    wrong = []
    expected = round(seconds * rate)
    if len(pictures) != expected or said != expected:
        wrong.append(f"{len(pictures)} frames decode and the header says {said}; {expected} were asked for")
    if abs(length - seconds) > 0.5 / rate:
        wrong.append(f"it lasts {length:.3f} s; {seconds:g} s were asked for")
    levels = [float(picture.std()) for picture in pictures]
    if min(levels, default=0.0) < 4:
        wrong.append(f"frame {int(np.argmin(levels))} is a single colour")
    steps = [float(np.abs(a.astype(int) - b).mean()) for a, b in pairwise(pictures)]
    if max(steps, default=0.0) < 0.05:
        wrong.append("nothing moves")
    found = read_sidecar(path)
    if found is None or len(found[1]) != expected:
        wrong.append(f"{path.name}.frames_md5 is missing or has the wrong number of lines")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("video", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    arguments = parser.parse_args()
    wrong = check(arguments.video, arguments.seconds)
    for line in wrong:
        print(f"{arguments.video}: {line}", file=sys.stderr)
    if not wrong:
        print(f"{arguments.video}: plays, {arguments.seconds:g} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

import tracemalloc

import numpy as np
import pytest

from longvid.errors import InputError
from longvid.metrics.reader import VideoReader


def test_frames_come_back_bit_for_bit_from_a_lossless_file(clips, save):
    video = clips.pan(10, 2)
    reader = VideoReader(save(video))
    assert (reader.fps, reader.height, reader.width) == (16, 96, 96)
    assert np.array_equal(np.stack(list(reader)), video)
    assert np.array_equal(np.stack(list(reader)), video), "a second pass starts anew"
    assert not reader.truncated


def test_h264_comes_back_alike(clips, save):
    video = clips.pan(10, 2, cell=24)  # coarse, as half-resolution chroma needs
    got = np.stack(list(VideoReader(save(video, "clip.mp4", codec="h264"))))
    assert got.shape == video.shape
    assert np.abs(got.astype(int) - video).mean() < 3


def test_a_long_file_is_never_in_memory(clips, save):
    video = clips.still(300, size=256)
    path = save(video)
    whole = video.nbytes
    del video
    tracemalloc.start()
    count = sum(1 for _ in VideoReader(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 300
    assert peak < whole / 20


def test_a_file_cut_short_is_read_to_its_last_whole_frame_and_says_so(clips, save):
    path = save(clips.noise(40), "clip.mp4", codec="h264", movflags="frag_every_frame+empty_moov+default_base_moof")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    reader = VideoReader(path)
    assert 15 <= sum(1 for _ in reader) < 40
    assert reader.truncated


def test_a_file_with_damage_inside_is_read_up_to_it_and_says_so(clips, save):
    path = save(clips.noise(40))
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + len(data) // 8] = np.random.default_rng(0).bytes(len(data) // 8)
    path.write_bytes(data)
    reader = VideoReader(path)
    assert 15 <= sum(1 for _ in reader) < 40
    assert reader.truncated


@pytest.mark.parametrize(
    ("content", "told"), [(None, "no such file"), (b"not a video at all", "cannot be read as a video")]
)
def test_what_is_no_video_is_told(tmp_path, content, told):
    path = tmp_path / "x.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=told):
        VideoReader(path)

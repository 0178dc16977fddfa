import json
import pickle
import subprocess
import sys

import numpy as np
import pytest

from longvid.metrics import extras
from longvid.metrics.colour import hue_drift
from longvid.metrics.consistency import loop_back, measure_consistency
from longvid.metrics.faults import find_faults
from longvid.metrics.flicker import measure_flicker
from longvid.metrics.identity import identity_drift
from longvid.metrics.motion import measure_motion
from longvid.metrics.report import StreamMetrics, evaluate, evaluate_file
from longvid.metrics.seams import block_boundaries, measure_seams


def test_report_is_the_single_metrics_together(clips):
    video = clips.walker(16 * 12)
    starts = block_boundaries(len(video), frames_per_block=3, temporal_stride=4)
    report = evaluate(video, 16, boundaries=starts, temporal_stride=4)
    assert report.motion == measure_motion(video, 16)
    assert report.flicker == measure_flicker(video)
    assert report.identity == identity_drift(video, 16)
    assert report.faults == find_faults(video, 16)
    assert report.hue == hue_drift(video, 16)
    assert report.consistency == measure_consistency(video, 16)
    assert repr(report.loop_back) == repr(loop_back(video, 16))  # repr, since NaN is not equal to itself
    assert report.seams == measure_seams(video, starts, fps=16, temporal_stride=4)
    assert report.skipped == {}


@pytest.mark.parametrize("chunk", [1, 7, 12, 192])
def test_stream_in_any_chunks_ends_in_the_same_report(clips, chunk):
    video = clips.walker(192)
    meter = StreamMetrics(16)
    for start in range(0, len(video), chunk):
        meter.update(video[start : start + chunk])
    assert repr(meter.report()) == repr(evaluate(video, 16))


def test_a_report_half_way_does_not_disturb_the_stream(clips):
    video = clips.walker(192)
    meter = StreamMetrics(16)
    meter.update(video[:100])
    meter.report()
    meter.update(video[100:])
    assert repr(meter.report()) == repr(evaluate(video, 16))


def test_block_boundaries_of_a_stream_are_the_chunks_that_say_so(clips):
    video = clips.pan(93, 1)
    starts = block_boundaries(93, frames_per_block=3, temporal_stride=4)
    meter = StreamMetrics(16, temporal_stride=4)
    for begin, end in zip([0, *starts], [*starts, len(video)]):
        meter.update(video[begin:end], new_block=True)
    assert meter.report().seams == measure_seams(video, starts, fps=16, temporal_stride=4)


def test_live_numbers_are_those_of_the_chunk(clips):
    meter = StreamMetrics(16)
    first = meter.update(clips.flat(16, (100, 100, 100)))
    assert first["brightness"] == pytest.approx(100)
    assert first["motion"] == pytest.approx(0, abs=1e-3)
    assert first["frozen"] is True
    assert "identity_drift" not in first
    assert meter.update(clips.flat(1, (140, 140, 140)))["difference"] == 40
    json.dumps(first, allow_nan=False)


def test_memory_does_not_grow_with_the_video(clips):
    """Its state (all but the flow, which does not pickle) when the rings are full and after as long again."""
    video = clips.walker(64, size=64)
    meter, sizes = StreamMetrics(4, motion=False), []
    for index in range(16):
        meter.update(np.roll(video, index, axis=2))
        if index in (7, 15):
            sizes.append(len(pickle.dumps(vars(meter))))
    assert sizes[1] <= sizes[0] + 1000


def test_a_video_of_one_frame_is_reported_with_what_it_lacks(clips):
    report = evaluate(clips.still(1), 16)
    assert report.frames == 1
    assert report.motion is report.flicker is report.identity is None
    assert "at least 3" in report.skipped["motion"]
    assert "two segments" in report.skipped["identity"]
    json.dumps(report.to_dict(), allow_nan=False)


def test_without_opencv_motion_must_be_left_out_by_name(clips, monkeypatch):
    real = extras.import_module
    monkeypatch.setattr(extras, "import_module", lambda name: real("no_such_module" if name == "cv2" else name))
    with pytest.raises(extras.MissingExtraError, match="OpenCV"):
        StreamMetrics(16)
    report = evaluate(clips.walker(160), 16, motion=False)
    assert report.motion is None
    assert report.skipped["motion"] == "not asked for (motion=False)"
    assert np.isnan(report.identity.motion)


def test_a_change_of_size_within_a_video_is_told(clips):
    meter = StreamMetrics(16)
    meter.update(clips.still(2, size=64))
    with pytest.raises(ValueError, match="96x96, this video began as 64x64"):
        meter.update(clips.still(2, size=96))


def test_numbers_that_are_not_numbers_become_null_in_json(clips):
    found = evaluate(clips.still(20), 16).to_dict()
    assert found["loop_back"]["closest"] is None
    assert found["motion"]["dynamic_degree"] is None
    json.dumps(found, allow_nan=False)


def test_file_gives_the_report_of_its_frames(clips, save):
    video = clips.walker(176)
    report = evaluate_file(save(video))
    assert report.to_dict() == evaluate(video, 16).to_dict()


def test_drift_of_a_fading_video_has_the_right_sign_and_size(clips):
    video = clips.walker(16 * 12).astype(float)
    video *= np.linspace(1, 0.5, len(video))[:, None, None, None]
    slope = evaluate(video.astype(np.uint8), 16).drift["brightness"].slope
    start = clips.walker(1).astype(float) @ (0.299, 0.587, 0.114)
    assert slope.per_minute == pytest.approx(-0.5 * start.mean() * 5, rel=0.05)
    assert slope.clear


def test_importing_the_package_is_light():
    code = (
        "import sys, longvid.metrics as m, longvid.metrics.cli; m.__all__;"
        "print([n for n in ('torch', 'cv2', 'scipy', 'matplotlib', 'numpy', 'av') if n in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_public_name_is_there_and_no_submodule_hides_it():
    import longvid.metrics as metrics

    for name in metrics.__all__:
        assert callable(getattr(metrics, name)), name
    with pytest.raises(AttributeError, match="no attribute 'movement'"):
        metrics.movement  # noqa: B018

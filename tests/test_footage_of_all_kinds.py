# Copyright 2026 The LoomVideo for Diffusers authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Footage of all kinds comes back as it was, but for the edit; checked by FFmpeg's own ffprobe."""

import json
import subprocess

import av
import pytest
from clips import QUICK, make_clip

from loomvideo_diffusers.footage import plan_edit, survey


TALL, WIDE = {"height": 64, "width": 32}, {"height": 32, "width": 64}

# Name to arguments of `make_clip`, and the suffixes of source and result where they are not .mp4
CLIPS = {}
for codec in ("libx264", "libx265"):
    CLIPS |= {f"{codec}, {number} frames": {"codec": codec, "num_frames": number} for number in (1, 2, 15, 16, 17, 29)}
    CLIPS |= {f"{codec}, {number} frames": {"codec": codec, "num_frames": number} for number in (30, 121, 122, 500)}
for number in (1, 2):  # of which the encoder gives any times otherwise
    CLIPS[f"libx265, {number} frames"]["options"] = {"x265-params": "bframes=0"}
for rate in (12, 23.976, 25, 29.97, 50, 60, 120):
    CLIPS[f"{rate} a second"] = {"rate": rate, "num_frames": 31}
for rate in (23.976, 29.97, 59.94):
    CLIPS[f"{rate} a second, mov"] = {"rate": rate, "num_frames": 31, "suffix": ".mov"}
for width, height in ((33, 47), (47, 33), (101, 57), (50, 96), (128, 32), (640, 360), (1280, 720), (1080, 1920)):
    pix_fmt = "yuv444p" if width % 2 or height % 2 else "yuv420p"
    CLIPS[f"{width} x {height}"] = {"size": (width, height), "pix_fmt": pix_fmt, "num_frames": 5}
CLIPS |= {
    "1920 x 1080": {"size": (1920, 1080), "num_frames": 17},
    **{f"turned by {angle}": {"rotation": angle} for angle in (90, 180, 270)},
    "odd and turned": {"rotation": 90, "size": (33, 47), "pix_fmt": "yuv444p"},
    "variable": {"times": [0, 40, 50, 90, 250, 260, 300, 1300, 1400]},
    "variable, long": {"times": [40 * index + 7 * (index % 5) for index in range(150)], "num_frames": 150},
    "variable, mkv": {"times": [0, 40, 50, 90, 250, 260, 300, 1300, 1400], "suffix": ".mkv"},
    "no sound": {"layout": None},
    "mono": {"layout": "mono"},
    "5.1": {"layout": "5.1"},
    "opus": {"sound_codec": "libopus", "num_frames": 30},
    "opus in webm": {"codec": "libvpx-vp9", "sound_codec": "libopus", "suffix": ".webm", "result": ".mkv"},
    "flac": {"sound_codec": "flac", "suffix": ".mkv", "num_frames": 30},
    "mp3": {"sound_codec": "libmp3lame", "num_frames": 30},
    "ac3, 5.1": {"sound_codec": "ac3", "layout": "5.1", "num_frames": 30},
    "pcm": {"sound_codec": "pcm_s16le", "suffix": ".mov", "num_frames": 30},
    "10 bits, h264": {"pix_fmt": "yuv420p10le"},
    "10 bits, hevc": {"pix_fmt": "yuv420p10le", "codec": "libx265"},
    "10 bits, av1": {"pix_fmt": "yuv420p10le", "codec": "libsvtav1", "suffix": ".mkv"},
    "4:2:2": {"pix_fmt": "yuv422p"},
    "gray": {"pix_fmt": "gray", "codec": "libx264"},
    "alpha": {"codec": "prores_ks", "pix_fmt": "yuva444p10le", "suffix": ".mov", "sound_codec": "pcm_s16le"},
    "alpha, vp9": {"codec": "libvpx-vp9", "pix_fmt": "yuva420p", "suffix": ".mkv"},
    "prores": {"codec": "prores_ks", "pix_fmt": "yuv422p10le", "suffix": ".mov", "sound_codec": "pcm_s16le"},
    "vp9": {"codec": "libvpx-vp9"},
    "av1": {"codec": "libsvtav1"},
    "mpeg4": {"codec": "mpeg4"},
    "mjpeg": {"codec": "mjpeg", "pix_fmt": "yuvj420p", "suffix": ".mov"},
    "ffv1": {"codec": "ffv1", "suffix": ".mkv"},
    "mpeg2 in a transport stream": {"codec": "mpeg2video", "suffix": ".ts", "result": ".mp4", "sound_codec": "ac3"},
    "h264 in a transport stream": {"suffix": ".ts", "result": ".mp4", "num_frames": 30},
    "xvid in avi": {"codec": "mpeg4", "suffix": ".avi", "result": ".mkv", "sound_codec": "libmp3lame"},
    "gif": {"codec": "gif", "pix_fmt": "rgb8", "suffix": ".gif", "result": ".mp4", "layout": None, "rate": 25},
    "full range": {"colors": (1, 1, 1, 2)},
    "BT.601": {"colors": (6, 6, 6, 1)},
    "BT.2020": {"colors": (9, 9, 14, 1), "pix_fmt": "yuv420p10le"},
    "HLG": {"colors": (9, 9, 18, 1), "pix_fmt": "yuv420p10le", "codec": "libx265"},
}


def probe(path):
    """Returns the stream of pictures, the times of all pictures, and the packets of sound, as ffprobe says."""
    command = ["ffprobe", "-v", "error", "-count_frames", "-show_streams", "-show_packets", "-show_frames"]
    command += ["-show_data_hash", "md5", "-of", "json", str(path)]
    said = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    pictures = next(stream for stream in said["streams"] if stream["codec_type"] == "video")
    entries = said["packets_and_frames"]
    times = [float(entry["best_effort_timestamp_time"]) for entry in entries if entry.get("media_type") == "video"]
    packets = [entry for entry in entries if entry["type"] == "packet" and entry["codec_type"] == "audio"]
    return pictures, times, packets


def upright_size(pictures):
    turns = [side.get("rotation", 0) for side in pictures.get("side_data_list", [])]
    size = (pictures["width"], pictures["height"])
    return size[::-1] if any(turn % 180 for turn in turns) else size


@pytest.mark.slow
@pytest.mark.parametrize("name", CLIPS)
def test_clip(name, edit, tmp_path):
    arguments = dict(CLIPS[name])
    codecs = {arguments.get("codec", "libx264"), arguments.get("sound_codec", "aac")}
    if missing := codecs - av.codecs_available:
        pytest.skip(f"this PyAV has no {', '.join(missing)}")
    suffix = arguments.pop("suffix", ".mp4")
    result = arguments.pop("result", suffix)
    source, output = make_clip(tmp_path / f"source{suffix}", **arguments), tmp_path / f"out{result}"
    footage = survey(source)
    shape = TALL if footage.height > footage.width else WIDE
    plan_edit(footage, output=output, **QUICK | shape).run(edit)

    before, times_before, sound_before = probe(source)
    after, times_after, sound_after = probe(output)
    assert upright_size(after) == upright_size(before)
    assert "side_data_list" not in after
    assert int(after["nb_read_frames"]) == int(before["nb_read_frames"]) == arguments.get("num_frames", 9)
    frame = 1 / float(footage.rate)
    for time_before, time_after in zip(times_before, times_after, strict=True):
        assert abs((time_after - times_after[0]) - (time_before - times_before[0])) < max(0.0015, 0.05 * frame)
    for packet_before, packet_after in zip(sound_before, sound_after, strict=True):
        if suffix == ".ts" and "ac3" not in codecs:
            # The head that each packet of AAC has in a transport stream, and nowhere else
            assert int(packet_before["size"]) == int(packet_after["size"]) + 7
        else:
            assert packet_after["data_hash"] == packet_before["data_hash"]
        shift = float(packet_after["pts_time"]) - float(packet_before["pts_time"])
        assert abs(shift - times_after[0] + times_before[0]) < frame
    for entry in ("color_range", "color_space", "color_primaries", "color_transfer"):
        if "colors" in arguments:
            assert after[entry] == before[entry]
    assert {path.name for path in tmp_path.iterdir()} == {source.name, output.name}

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
"""Clips of all kinds, made on the spot."""

from fractions import Fraction

import av
import numpy as np

from loomvideo_diffusers.footage import read_frames, survey
from loomvideo_diffusers.media.decoding import convert_pixels
from loomvideo_diffusers.media.encoding import plan_output, write_footage


# Settings of an edit that takes no time
QUICK = {"prompt": "blue", "height": 32, "width": 64, "num_inference_steps": 1, "guidance_scale": 1.0}
QUICK |= {"guidance_scale_visual": 1.0, "window_frames": 17}

CHANNELS = {"mono": 1, "stereo": 2, "5.1": 6}


def make_clip(
    path,
    num_frames=9,
    rate=24,
    size=(64, 48),
    codec="libx264",
    pix_fmt="yuv420p",
    layout="stereo",
    sound_codec="aac",
    times=None,
    rotation=None,
    colors=None,
    pixel_aspect=None,
    options=None,
):
    """Writes a clip in which a bright square moves from left to right, with noise for sound."""
    rate, rng = Fraction(rate).limit_denominator(1001), np.random.default_rng(0)
    width, height = size
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.time_base = 1 / rate if times is None else Fraction(1, 1000)
        if colors is not None:
            context = stream.codec_context
            context.colorspace, context.color_primaries, context.color_trc, context.color_range = colors
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if layout is not None:
            sound = container.add_stream(sound_codec, rate=48000, layout=layout)
        for index in range(num_frames):
            pixels = np.full((height, width, 3), 40, np.uint8)
            left = round((width - width // 4) * index / max(num_frames - 1, 1))
            pixels[height // 4 : height // 2, left : left + width // 4] = (220, 60, 40)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pix_fmt)
            frame.pts = index if times is None else times[index]
            frame.time_base = stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if layout is not None:
            num_samples = round(num_frames / rate * 48000)
            noise = rng.normal(0, 0.1, (CHANNELS[layout], num_samples)).astype(np.float32)
            whole = av.AudioFrame.from_ndarray(noise, format="fltp", layout=layout)
            whole.sample_rate, whole.time_base, whole.pts = 48000, Fraction(1, 48000), 0
            size = sound.codec_context.frame_size or 1024
            resampler = av.AudioResampler(sound.codec_context.format.name, layout, 48000, size)
            for frame in [*resampler.resample(whole), *resampler.resample(None)]:
                container.mux(sound.encode(frame))
            container.mux(sound.encode())
    return path


def rewrite(source, output, audio="copy", num_frames=None):
    """Writes a clip's own frames as those of an edit are written; returns what was said of it."""
    footage = survey(source, num_frames)
    plan = plan_output(footage, output, audio)
    with write_footage(plan, footage) as writer:
        for pixels in read_frames(footage):
            writer.write(convert_pixels(pixels, plan.pixel_format))
    return [*footage.notes, *plan.notes]


def flashes_and_beeps(path):
    """When a clip turns bright, and when it is heard again after a pause, in seconds as a player shows them."""
    with av.open(str(path)) as container:
        origin, brightness, flashes = (container.start_time or 0) / av.time_base, 0, []
        for frame in container.decode(container.streams.best("video")):
            before, brightness = brightness, frame.to_ndarray(format="gray").mean()
            if brightness > before + 40:
                flashes.append(frame.time - origin)
    beeps, last = [], -1
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0) if container.streams.audio else ():
            samples = np.abs(frame.to_ndarray().astype(float)) / (
                np.iinfo(frame.to_ndarray().dtype).max if "s" in frame.format.name else 1
            )
            loud = samples.max(0) if frame.format.is_planar else samples.reshape(-1, frame.layout.nb_channels).max(1)
            for time in frame.time - origin + np.flatnonzero(loud > 0.1) / frame.sample_rate:
                if time > last + 0.3:
                    beeps.append(time)
                last = time
    return flashes, beeps

"""Sound for H.264 files: what AAC takes is checked before the frames are made, other sample rates are converted.

C channels, N samples; waveform float32 (C, N) in [-1, 1].
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import av
from av.container import OutputContainer
from torch import Tensor

LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}  # by number of channels
AAC_RATES = (7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)  # of MPEG-4 audio, in Hz
STRETCH = 65536  # samples that are encoded at once


@dataclass(frozen=True)
class Sound:
    """A sound that can be encoded.

    Attributes:
        waveform: (C, N), float32, finite, with a number of channels of LAYOUTS.
        rate: Samples per second.
    """

    waveform: Tensor
    rate: int

    @property
    def layout(self) -> str:
        return LAYOUTS[len(self.waveform)]

    @property
    def encoded_rate(self) -> int:
        """Returns the sample rate in the file: the lowest of AAC that is not below the sound's, else the highest."""
        return next((rate for rate in AAC_RATES if rate >= self.rate), AAC_RATES[-1])


def checked_sound(waveform: Tensor, rate: float, seconds: float) -> Sound:
    """Returns the sound, cut to a length, ready to be encoded.

    Args:
        waveform: (C, N), floating-point.
        rate: Samples per second.
        seconds: Length of the video.

    Raises:
        ValueError: What the sound is, what is wanted and the cure.
    """
    if waveform.ndim != 2 or not waveform.is_floating_point():
        raise ValueError(
            f"the audio is {waveform.dtype} of shape {tuple(waveform.shape)}, wanted floating-point (channels, samples): "
            "load it with Load Audio"
        )
    if len(waveform) not in LAYOUTS:
        wanted = ", ".join(map(str, LAYOUTS))
        raise ValueError(f"the audio has {len(waveform)} channels, wanted one of {wanted}: mix it to stereo")
    if not math.isfinite(rate) or round(rate) < 1:
        raise ValueError(f"the audio has {rate} samples per second, wanted at least 1: load it with Load Audio")
    waveform = waveform[:, : math.ceil(seconds * round(rate))].float().cpu()
    broken = ~waveform.isfinite().all(0)
    if broken.any():
        second = int(broken.nonzero()[0]) / round(rate)
        raise ValueError(f"the audio has NaN or infinite values from {second:.2f} seconds on: look for the cause in the node that made it")
    return Sound(waveform, round(rate))


def sound_packets(container: OutputContainer, sound: Sound) -> Iterator[av.Packet]:
    """Adds a stream to the container. Returns an iterator over the sound's packets, resampled where AAC lacks its rate."""
    stream = container.add_stream("aac", rate=sound.encoded_rate, layout=sound.layout)
    resampler = av.AudioResampler("fltp", sound.layout, sound.encoded_rate)

    def frames() -> Iterator[av.AudioFrame]:
        for start in range(0, sound.waveform.shape[1], STRETCH):
            samples = sound.waveform[:, start : start + STRETCH].contiguous().numpy()
            frame = av.AudioFrame.from_ndarray(samples, "fltp", sound.layout)
            frame.sample_rate, frame.pts = sound.rate, start
            yield frame

    def packets() -> Iterator[av.Packet]:
        if sound.rate == sound.encoded_rate:
            converted = frames()
        else:
            converted = (part for frame in (*frames(), None) for part in resampler.resample(frame))
        for frame in converted:
            yield from stream.encode(frame)
        yield from stream.encode()

    return packets()

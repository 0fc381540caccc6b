"""Pictures to a GIF or an MP4 file, which is there whole or not at all."""

import contextlib
import importlib.util
import itertools
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from k24lab.errors import ConfigError, RunError
from k24lab.lab.runs import atomic_write

Pixels = UInt8[np.ndarray, "H W 3"]

FORMATS = (".gif", ".mp4")
FPS = (1, 50)  # a GIF counts hundredths of a second, and browsers slow down what is faster
MOST_GIF_FRAMES = 3000  # they are in memory, a byte a pixel, until the file is written
N_COLORS = 255  # of a GIF's 256: the last one stands for what has not changed
N_EXACT = 200  # of them, that are in the pictures as they are
SAMPLES = 8  # pictures that the colours of a GIF are chosen from
# Plays in browsers and slides, which want even sizes and this layout of colours; the same bytes every time.
H264 = ["-c:v", "libx264", "-crf", "18", "-pix_fmt", "yuv420p", "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2"]
PLAIN = ["-movflags", "+faststart", "-fflags", "+bitexact", "-flags:v", "+bitexact", "-map_metadata", "-1"]


def check_output(path: Path, fps: int) -> None:
    """Refuse what could not be written, before anything is drawn.

    Raises:
        ConfigError: another suffix than .gif or .mp4, a folder, a rate out of range, or no ffmpeg for an MP4.
    """
    if path.suffix.lower() not in FORMATS or path.is_dir():
        raise ConfigError(f"output = {str(path)!r} must be a file that ends in {' or '.join(FORMATS)}")
    if not FPS[0] <= fps <= FPS[1]:
        raise ConfigError(f"fps = {fps} must be in {FPS[0]} … {FPS[1]} frames per second")
    if path.suffix.lower() == ".mp4":
        find_ffmpeg()


def write_video(path: Path, picture: Callable[[int], Pixels], holds: Sequence[int], fps: int) -> None:
    """Write `len(holds)` pictures of one size.

    Args:
        path: of the file, .gif or .mp4; its folder is there.
        picture: draws the k-th picture; a GIF asks for some of them twice.
        holds: how many times 1/fps seconds each picture is seen.
        fps: see FPS.

    Raises:
        RunError: too many pictures for a GIF, or ffmpeg fails.
    """
    if path.suffix.lower() == ".mp4":
        frames = (itertools.repeat(picture(k), hold) for k, hold in enumerate(holds))
        _write_mp4(path, itertools.chain.from_iterable(frames), fps)
        return
    if len(holds) > MOST_GIF_FRAMES:
        raise RunError(f"{len(holds)} pictures are too many for a GIF ({MOST_GIF_FRAMES}): fewer episodes, or .mp4")
    _write_gif(path, picture, holds, fps)


def _write_gif(path: Path, picture: Callable[[int], Pixels], holds: Sequence[int], fps: int) -> None:
    palette = Palette([picture(k) for k in np.linspace(0, len(holds) - 1, SAMPLES).astype(int).tolist()])
    frames = (palette.image(picture(k)) for k in range(len(holds)))
    with atomic_write(path) as file:
        next(frames).save(
            file,
            format="GIF",
            save_all=True,
            append_images=frames,
            duration=[round(100 * hold / fps) * 10 for hold in holds],  # milliseconds
            loop=0,
            disposal=1,
            optimize=True,
            transparency=N_COLORS,
        )


class Palette:
    """The colours of a GIF: the commonest ones of some samples as they are, and a few that stand for all others.

    A picture gets the nearest of them. Pillow's own search rounds, which turns white to grey and mixes up pale colours.
    """

    def __init__(self, samples: Sequence[Pixels]):
        every = Image.fromarray(np.concatenate(samples))
        counted = sorted(every.getcolors(every.width * every.height) or [], key=lambda item: (-item[0], item[1]))
        colors = np.array([color for _, color in counted], dtype=np.uint8)
        others = Image.fromarray(colors[None, N_EXACT:]) if len(colors) > N_EXACT else Image.new("RGB", (1, 1))
        rest = others.quantize(N_COLORS - N_EXACT, method=Image.Quantize.MEDIANCUT).getpalette() or []
        chosen = [*colors[:N_EXACT], *np.array(rest, dtype=np.uint8).reshape(-1, 3)]
        self._colors = np.array(chosen, dtype=np.int32)
        self._index = np.full(1 << 24, N_COLORS, dtype=np.uint8)  # of every colour; N_COLORS: not looked for yet

    def image(self, pixels: Pixels) -> Image.Image:
        """The picture in these colours."""
        red, green, blue = np.moveaxis(pixels.astype(np.int32), -1, 0)
        packed = red << 16 | green << 8 | blue
        indices = self._index[packed]
        if (indices == N_COLORS).any():
            new = np.unique(packed[indices == N_COLORS])
            for part in np.array_split(new, -(-len(new) // 4096)):  # photographs have many
                distance = (np.stack([part >> 16, part >> 8 & 255, part & 255], -1)[:, None] - self._colors) ** 2
                self._index[part] = distance.sum(axis=-1).argmin(axis=1)
            indices = self._index[packed]
        image = Image.fromarray(indices)
        image.putpalette(self._colors.astype(np.uint8).tobytes())
        return image


def find_ffmpeg() -> str:
    """The program that writes MP4 files: the system's, or the one that comes with imageio-ffmpeg.

    Raises:
        ConfigError: there is neither.
    """
    if program := shutil.which("ffmpeg"):
        return program
    if importlib.util.find_spec("imageio_ffmpeg"):
        from imageio_ffmpeg import get_ffmpeg_exe

        try:
            return get_ffmpeg_exe()
        except RuntimeError as error:
            raise ConfigError(f"an .mp4 needs ffmpeg, and imageio-ffmpeg has none: {error}") from error
    raise ConfigError("an .mp4 needs ffmpeg: install it, or pip install 'k24lab[video]'; a .gif needs neither")


def _write_mp4(path: Path, frames: Iterator[Pixels], fps: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "film.mp4"  # ffmpeg goes back in its file, so it cannot write to a pipe
        _run_ffmpeg(frames, fps, made, Path(folder) / "errors")
        with made.open("rb") as source, atomic_write(path) as file:
            shutil.copyfileobj(source, file)


def _run_ffmpeg(frames: Iterator[Pixels], fps: int, made: Path, errors: Path) -> None:
    first = next(frames)
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{first.shape[1]}x{first.shape[0]}", "-r", str(fps), "-i", "-"]
    command = [find_ffmpeg(), "-y", "-loglevel", "error", *raw, *H264, *PLAIN, str(made)]
    with errors.open("wb") as log:
        # A session of its own: Ctrl-C ends this process, which then ends ffmpeg.
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=log, start_new_session=True)
    assert process.stdin is not None
    try:
        process.stdin.write(first.tobytes())
        for pixels in frames:
            process.stdin.write(pixels.tobytes())
        process.stdin.close()
        code = process.wait()
    except BrokenPipeError:
        code = process.wait() or 1
    finally:
        process.kill()
        process.wait()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
    if code:
        raise RunError(f"ffmpeg ended with {code}: {errors.read_text(errors='replace').strip()[-300:]}")

"""The transform of the Python program: Pillow's bicubic resize to a square, then mean and
deviation per channel."""

import io

import numpy
from PIL import Image

MEAN = numpy.array([0.48145466, 0.4578275, 0.40821073], numpy.float32)[:, None, None]
DEVIATION = numpy.array([0.26862954, 0.26130258, 0.27577711], numpy.float32)[:, None, None]


def pixels(path, resolution):
    with open(path, "rb") as file:
        picture = Image.open(io.BytesIO(file.read())).convert("RGB")
    picture = picture.resize((resolution, resolution), Image.BICUBIC)
    channels = numpy.asarray(picture).transpose(2, 0, 1).astype(numpy.float32)
    channels /= 255
    channels -= MEAN
    channels /= DEVIATION
    return channels


def write(directory, count):
    """JPEG files of 500 x 375 pixels, with edges and noise as photographs have."""
    random = numpy.random.default_rng(0)
    for index in range(count):
        small = random.integers(0, 256, (15, 20, 3), dtype=numpy.uint8)
        smooth = Image.fromarray(small).resize((500, 375), Image.BICUBIC)
        noisy = numpy.asarray(smooth).astype(numpy.int16)
        noisy = noisy + random.integers(-12, 13, noisy.shape, dtype=numpy.int16)
        noisy[100:250, 150:350] = 255 - noisy[100:250, 150:350]
        picture = Image.fromarray(noisy.clip(0, 255).astype(numpy.uint8))
        picture.save(f"{directory}/{index:04}.jpg", quality=90)

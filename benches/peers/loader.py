"""webdataset + Pillow + numpy: JPEG in a shard to a 224 training view, as `blip2 bench loader` measures it.

Reads seconds from standard input, one number a line, and answers each with images per second. The view is LAVIS's
blip2_image_train: RandomResizedCrop(224, scale (0.5, 1), ratio (3/4, 4/3), bicubic), a flip, normalised float32 CHW,
stacked into batches of 32.
"""

import math
import random
import sys
import time

import numpy as np
import webdataset as wds
from PIL import Image

SIZE = 224
BATCH = 32
# (byte / 255 - mean) / std as one multiplication and one addition, in float32.
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)
SCALE = (1.0 / (255.0 * STD)).astype(np.float32)
SHIFT = (-MEAN / STD).astype(np.float32)


def crop_box(width, height):
    for _ in range(10):
        area = width * height * random.uniform(0.5, 1.0)
        aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = random.randint(0, width - w), random.randint(0, height - h)
            return left, top, left + w, top + h
    return 0, 0, width, height


def train_view(image):
    box = crop_box(*image.size)
    image = image.crop(box).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = np.asarray(image).astype(np.float32)
    pixels *= SCALE
    pixels += SHIFT
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def batches(shards):
    views = (
        wds.WebDataset(shards, shardshuffle=False, empty_check=False)
        .repeat()
        .shuffle(256)
        .decode("pilrgb")
        .to_tuple("jpg", "txt")
        .map_tuple(train_view, str.strip)
    )
    pixels, texts = [], []
    for view, text in views:
        pixels.append(view)
        texts.append(text)
        if len(pixels) == BATCH:
            yield np.stack(pixels), texts
            pixels, texts = [], []


def main():
    stream = batches(sys.argv[1:])
    next(stream)
    print("ready", flush=True)
    for line in sys.stdin:
        seconds = float(line)
        start = time.perf_counter()
        images = 0
        while time.perf_counter() - start < seconds:
            images += len(next(stream)[1])
        print(images / (time.perf_counter() - start), flush=True)


if __name__ == "__main__":
    main()

"""A contender: does the cases that it is told by lines on standard input, one answer each."""

import argparse
import functools
import json
import os
import sys
import time

import numpy

import memory

BATCH = 64


class Pictures:
    """A data set for the loader of PyTorch."""

    def __init__(self, paths, resolution):
        self.paths, self.resolution = paths, resolution

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        import pictures

        return pictures.pixels(self.paths[index], self.resolution)


class Common:
    """Inputs, and what does not depend on the library."""

    def __init__(self, directory, threads):
        self.directory, self.threads = directory, threads
        with open(f"{directory}/config.json", encoding="utf-8") as file:
            self.resolution = json.load(file)["image_resolution"]

    @functools.cached_property
    def pixels(self):
        values = numpy.fromfile(f"{self.directory}/pixels.f32", numpy.float32)
        return values.reshape(-1, 3, self.resolution, self.resolution)

    def tokens(self, name):
        values = numpy.fromfile(f"{self.directory}/{name}.i32", numpy.int32)
        tokens = values.reshape(-1, 52).astype(numpy.int64)
        if name == "trimmed":
            tokens = tokens[:, : int((tokens != 0).sum(1).max())]
        return tokens

    def paths(self):
        folder = f"{self.directory}/pictures"
        return [f"{folder}/{name}" for name in sorted(os.listdir(folder))]

    def extract(self, case):
        """All pictures to a file of features, in batches."""
        import pictures

        encode = self.encoder("image")
        paths = self.paths()
        with open(f"{self.directory}/{case['contender']}.jsonl", "w", encoding="utf-8") as file:
            for first in range(0, len(paths), BATCH):
                batch = paths[first : first + BATCH]
                pixels = numpy.stack([pictures.pixels(path, self.resolution) for path in batch])
                features = encode(pixels)
                features /= numpy.linalg.norm(features, axis=1, keepdims=True)
                for offset, feature in enumerate(features):
                    line = {"image_id": first + offset, "feature": feature.tolist()}
                    file.write(json.dumps(line) + "\n")

    def start(self, case):
        """One picture and two texts from nothing."""
        import pictures

        path = self.paths()[0]
        image = self.encoder("image")(pictures.pixels(path, self.resolution)[None])
        texts = self.encoder("text")(self.tokens("natural")[:2])
        image, texts = (x / numpy.linalg.norm(x, axis=1, keepdims=True) for x in (image, texts))
        scores = (image @ texts.T)[0] / 0.07
        scores = numpy.exp(scores - scores.max())
        print(json.dumps((scores / scores.sum()).tolist()))

    def encode(self, case):
        encode = self.encoder(case["tower"])
        if case["tower"] == "image":
            inputs = self.pixels[: case["batch"]]
        else:
            inputs = self.tokens(case["texts"])[: case["batch"]]
        return lambda: encode(inputs)


class Torch(Common):
    def __init__(self, directory, threads, bf16):
        super().__init__(directory, threads)
        import torch

        torch.set_num_threads(threads)
        self.torch, self.bf16 = torch, bf16

    def open(self):
        import towers

        return towers.load(f"{self.directory}/config.json", f"{self.directory}/weights.pt")

    @functools.cached_property
    def model(self):
        return self.open()

    def encoder(self, tower):
        torch = self.torch
        encode = self.model.encode_image if tower == "image" else self.model.encode_text

        def run(inputs):
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, self.bf16):
                return encode(torch.from_numpy(inputs)).float().numpy()

        return run

    def load(self, case):
        return self.open

    def preprocess(self, case):
        import pictures

        side = self.resolution
        if case["threads"] == 1:
            return lambda: [pictures.pixels(path, side) for path in self.paths()]
        loader = self.torch.utils.data.DataLoader(
            Pictures(self.paths(), side), BATCH, num_workers=case["threads"], persistent_workers=True
        )
        return lambda: list(loader)

    def train(self, case):
        torch, model = self.torch, self.open().train()
        model.switches.mask_ratio = case["mask_ratio"]
        model.switches.checkpointing = case["checkpointing"]
        model.switches.dropout = case["dropout"]
        plain = [p for n, p in model.named_parameters() if p.ndim < 2 or "embedding" in n]
        chosen = set(map(id, plain))
        decayed = [p for p in model.parameters() if id(p) not in chosen]
        groups = [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.2}]
        optimizer = torch.optim.AdamW(groups, lr=1e-5, betas=(0.9, 0.98), eps=1e-6)
        pixels = torch.from_numpy(self.pixels[: case["batch"]])
        tokens = torch.from_numpy(self.tokens(case["texts"])[: case["batch"]])

        def step():
            optimizer.zero_grad()
            loss = model.loss(pixels, tokens)
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, 4.6052)
            return numpy.array([loss.item()], numpy.float32)

        return step


class Onnx(Common):
    def open(self, tower):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        path = f"{self.directory}/{tower}.onnx"
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def load(self, case):
        return lambda: [self.open(tower) for tower in ("image", "text")]

    @functools.cache
    def session(self, tower):
        return self.open(tower)

    def encoder(self, tower):
        session = self.session(tower)
        return lambda inputs: session.run(None, {"input": inputs})[0]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--directory", required=True)
    parser.add_argument("--contender", choices=["torch", "torch-bf16", "onnx"], required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--once", help="A case to do without an answer")
    args = parser.parse_args()
    if args.contender == "onnx":
        worker = Onnx(args.directory, args.threads)
    else:
        worker = Torch(args.directory, args.threads, args.contender == "torch-bf16")
    if args.once:
        getattr(worker, args.once)({"contender": args.contender})
        return
    prepared = {}
    for line in sys.stdin:
        request = json.loads(line)
        case = request["case"]
        name = json.dumps(case)
        if name not in prepared:
            prepared[name] = getattr(worker, case["kind"])(case)
        start = time.perf_counter()
        result = prepared[name]()
        seconds = time.perf_counter() - start
        if request["output"]:
            numpy.concatenate([numpy.ravel(part) for part in result]).astype(numpy.float32).tofile(
                request["output"]
            )
        print(json.dumps({"seconds": seconds, "peak_mib": memory.peak_mib()}), flush=True)


main()

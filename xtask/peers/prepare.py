"""Writes what the peers need beside the weights: pictures, and the towers as ONNX."""

import argparse
import json
import os

import numpy
import torch

import pictures
import towers


class Wrapped(torch.nn.Module):
    def __init__(self, model, encode):
        super().__init__()
        self.model, self.encode = model, encode

    def forward(self, x):
        return self.encode(x)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--directory", required=True)
    parser.add_argument("--pictures", type=int, required=True)
    args = parser.parse_args()
    folder = args.directory + "/pictures"
    if not os.path.isdir(folder):
        os.mkdir(folder)
        pictures.write(folder, args.pictures)
    model = towers.load(args.directory + "/config.json", args.directory + "/weights.pt")
    with open(args.directory + "/config.json", encoding="utf-8") as file:
        side = json.load(file)["image_resolution"]
    text = torch.from_numpy(numpy.fromfile(args.directory + "/natural.i32", numpy.int32))
    text = text.reshape(32, 52)[:2].long()
    batch = {0: "batch"}
    for name, forward, example, axes in [
        ("image", model.encode_image, torch.rand(2, 3, side, side), batch),
        ("text", model.encode_text, text, {0: "batch", 1: "tokens"}),
    ]:
        path = f"{args.directory}/{name}.onnx"
        if not os.path.exists(path):
            with torch.no_grad():
                torch.onnx.export(
                    Wrapped(model, forward), example, path + ".partial", opset_version=17,
                    input_names=["input"], output_names=["features"],
                    dynamic_axes={"input": axes, "features": batch},
                )  # fmt: skip
            os.rename(path + ".partial", path)


main()

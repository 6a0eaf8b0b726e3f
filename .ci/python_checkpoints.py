"""Called by python-checkpoints.sh: BINARIES FIXTURES WORK."""

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import cn_clip.clip as reference
import numpy
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import ChineseCLIPModel, ChineseCLIPProcessor

BINARIES, FIXTURES, WORK = map(Path, sys.argv[1:])
TOLERANCE = 1e-4


def run(program, *args):
    done = subprocess.run([BINARIES / program, *map(str, args)], capture_output=True, text=True)
    assert done.returncode == 0, f"{program} {args}: {done.stderr}"


def config_of(variant):
    """The recorded configuration, as a file of ours and under a name of the reference program."""
    config = json.loads((FIXTURES / "model" / variant / "config.json").read_text())["model_config"]
    return write_config(variant, config)


def write_config(name, config):
    (WORK / f"{name}.json").write_text(json.dumps(config))
    package = Path(reference.__file__).parent / "model_configs"
    for part, is_text in (("vision", False), ("text", True)):
        values = {key: value for key, value in config.items()
                  if key.startswith(("text", "vocab")) == is_text}
        (package / f"{name}-{part}.json").write_text(json.dumps(values))
    return config


def convert(variant, source, target, *more):
    path = WORK / f"{variant}.json"
    run("xtask", "convert", "--input", source, "--output", target, "--vision-model", path,
        "--text-model", path, *more)
    return target


def same(one, other, what):
    assert one.keys() == other.keys(), f"{what}: {one.keys() ^ other.keys()}"
    for key, value in one.items():
        assert value.shape == other[key].shape, f"{what}: {key}"
        assert torch.equal(value.float(), other[key].float()), f"{what}: {key}"


def close(got, expected, what):
    error = ((got - expected).abs().max() / expected.abs().max()).item()
    assert error <= TOLERANCE, f"{what}: relative error {error}"
    print(f"  {what}: relative error {error:.1e}")


def official(path):
    return torch.load(path, map_location="cpu", weights_only=True)


def ours(variant, checkpoint, inputs):
    """Features by this program."""
    path, output = WORK / f"{variant}.json", WORK / "features.safetensors"
    run("xtask", "features", "--checkpoint", checkpoint, "--inputs", inputs, "--output", output,
        "--vision-model", path, "--text-model", path)
    return load_file(output)


def load_reference(variant, path, resolution):
    model, transform = reference.load_from_name(
        str(path), device="cpu", vision_model_name=f"{variant}-vision",
        text_model_name=f"{variant}-text", input_resolution=resolution)
    return model.eval(), transform


@torch.no_grad()
def forms(variant):
    print(variant)
    config = config_of(variant)
    source = FIXTURES / "model" / variant / "checkpoint_fp16.pt"
    inputs = FIXTURES / "model" / variant / "forward_eval.safetensors"
    recorded = load_file(inputs)
    weights = torch.load(source, map_location="cpu", weights_only=True)["state_dict"]

    # The official form, straight and by way of the others.
    straight = convert(variant, source, WORK / f"{variant}.pt")
    assert official(straight).keys() == {"epoch", "step", "name", "state_dict"}
    same(official(straight)["state_dict"], weights, "official")
    for middle in ("bpk", "safetensors"):
        middle = convert(variant, source, WORK / f"{variant}.{middle}", "--dtype=fp32")
        back = convert(variant, middle, WORK / f"{variant}-back{middle.suffix}.pt")
        same(official(back)["state_dict"], weights, f"official by {middle.suffix}")
    plain = {key.removeprefix("module."): value for key, value in weights.items()}
    same(load_file(WORK / f"{variant}.safetensors"), plain, "safetensors")

    # The unmodified program loads it, and gives our features.
    model, _ = load_reference(variant, straight, config["image_resolution"])
    found = ours(variant, straight, inputs)
    close(found["image_features"], model.encode_image(recorded["pixels"]), "image features")
    close(found["text_features"], model.encode_text(recorded["tokens"]), "text features")

    # A TorchScript archive, as the models of OpenAI come in.
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.visual = model.visual
            self.logit_scale = model.logit_scale
            self.token_embedding = torch.nn.Embedding(3, 4)

        def forward(self, pixels):
            return self.visual(pixels) * self.logit_scale.exp()

    script = torch.jit.trace(Model(), recorded["pixels"][:1], check_trace=False)
    script.save(str(WORK / "script.pt"))
    run("xtask", "convert", "--input", WORK / "script.pt", "--output", WORK / "image.pt", "--force")
    image = torch.load(WORK / "image.pt", weights_only=True)
    expected = {key: value for key, value in script.state_dict().items() if "token" not in key}
    same(image, expected, "TorchScript")
    return model


@torch.no_grad()
def hugging_face():
    print("Hugging Face")
    variant = "vit_tiny"
    source = FIXTURES / "model" / variant / "checkpoint_fp16.pt"
    inputs = FIXTURES / "model" / variant / "forward_eval.safetensors"
    recorded = load_file(inputs)
    folder = convert(variant, source, WORK / "folder", "--to=huggingface", "--dtype=fp32")
    model, report = ChineseCLIPModel.from_pretrained(folder, output_loading_info=True)
    model.eval()
    assert not any(report.values()), report
    found = ours(variant, folder, inputs)
    tokens = recorded["tokens"]
    texts = model.get_text_features(tokens, attention_mask=(tokens != 0).long())
    close(found["image_features"], model.get_image_features(recorded["pixels"]), "image features")
    close(found["text_features"], texts, "text features")

    processor = ChineseCLIPProcessor.from_pretrained(folder)
    lines = (FIXTURES / "tokenizer.jsonl").read_text().splitlines()
    compared = 0
    for line in map(json.loads, lines[:60]):
        ids = processor.tokenizer(line["text"], truncation=True, max_length=52)["input_ids"]
        compared += ids + [0] * (52 - len(ids)) == line["ids52"]
    assert compared >= 55, f"{compared} of 60 texts have the same ids"
    picture = Image.open(FIXTURES / "preprocess" / "02_noise_rgb.png")
    pixels = processor(images=picture, return_tensors="pt")["pixel_values"][0]
    close(pixels, load_reference(variant, WORK / f"{variant}.pt", 32)[1](picture), "pixels")

    # And back, from either kind of file.
    for safe in (True, False):
        again = WORK / f"again-{safe}"
        model.save_pretrained(again, safe_serialization=safe)
        back = convert(variant, again, WORK / f"again-{safe}.pt")
        same(official(back)["state_dict"], official(WORK / f"{variant}.pt")["state_dict"],
             "from save_pretrained")


def adamw(model, settings):
    """The optimizer of the reference program."""
    excluded = lambda name: any(part in name for part in ("bn", "ln", "bias", "logit_scale"))
    named = [(f"module.{name}", value) for name, value in model.named_parameters()]
    return torch.optim.AdamW(
        [{"params": [value for name, value in named if excluded(name)], "weight_decay": 0.0},
         {"params": [value for name, value in named if not excluded(name)],
          "weight_decay": settings["weight_decay"]}],
        lr=1.0, betas=(0.5, 0.5), eps=1.0)


def training():
    print("training checkpoints")
    meta = json.loads((FIXTURES / "train_run" / "meta.json").read_text())["model_config"]
    write_config("tiny", meta)
    theirs = WORK / "epoch2.pt"
    with gzip.open(FIXTURES / "train_run" / "epoch2_with_optimizer.pt.gz") as packed:
        theirs.write_bytes(packed.read())
    converted = convert("tiny", theirs, WORK / "epoch2-again.pt")
    # Written by training itself.
    data = FIXTURES / "dataset" / "lmdb" / "train"
    run("cn-clip", "train", "--train-data", data, "--logs", WORK, "--name=run", "--max-steps=1",
        "--batch-size=4", "--context-length=24", "--vision-model", WORK / "tiny.json",
        "--text-model", WORK / "tiny.json")
    trained = WORK / "run" / "checkpoints" / "epoch_latest.pt"

    after = {}
    for name, path in (("theirs", theirs), ("converted", converted), ("trained", trained)):
        # The original holds numpy scalars, which weights_only refuses.
        file = torch.load(path, map_location="cpu", weights_only=name != "theirs")
        model, _ = load_reference("tiny", path, meta["image_resolution"])
        # `--resume` wants the prefix.
        wrapper = torch.nn.Module()
        wrapper.module = model
        wrapper.load_state_dict(file["state_dict"])
        model.train()
        torch.manual_seed(0)
        optimizer = adamw(model, file["optimizer"]["param_groups"][1])
        optimizer.load_state_dict(file["optimizer"])
        pixels = torch.randn(4, 3, meta["image_resolution"], meta["image_resolution"])
        tokens = torch.randint(1, meta["vocab_size"], (4, 24))
        images, texts, scale = model(pixels, tokens)
        logits = scale * images @ texts.t()
        truth = torch.arange(4)
        cross_entropy = torch.nn.functional.cross_entropy
        ((cross_entropy(logits, truth) + cross_entropy(logits.t(), truth)) / 2).backward()
        optimizer.step()
        state = optimizer.state_dict()
        steps = {int(value["step"]) for value in state["state"].values()}
        assert steps == {file["step"] + 1}, steps
        assert len(state["state"]) == len(list(model.parameters()))
        for group in state["param_groups"]:
            assert group.keys() == adamw(model, group).state_dict()["param_groups"][0].keys()
        after[name] = {key: value.clone() for key, value in model.state_dict().items()}
    same(after["converted"], after["theirs"], "a step after resuming")
    print("  resumed by torch.optim.AdamW: the same step from their file and from ours")


if __name__ == "__main__":
    torch.manual_seed(0)
    for variant in ("vit_tiny", "rn_tiny"):
        forms(variant)
    hugging_face()
    training()
    shutil.rmtree(WORK / "folder")
    print(f"checkpoints agree (torch {torch.__version__}, numpy {numpy.__version__})")

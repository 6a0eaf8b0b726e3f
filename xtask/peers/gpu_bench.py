"""Rates of cn-clip and of PyTorch's ChineseCLIPModel on one device, in turns in one run.

Writes the seconds of every round and the memory of the device as JSON, which `cn-clip-bench
gpu-bench report` turns into a table."""

import argparse
import json
import os
import resource
import subprocess
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
# Pairs of a batch: for encoding, and for training.
BATCHES = {"ViT-B-16": (256, 256), "ViT-H-14": (128, 32)}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", default=os.path.join(HERE, "cn-clip-bench"))
    parser.add_argument("--models", nargs="+", default=["ViT-B-16", "ViT-H-14"],
                        help="names of configs/*.json, or paths of such files")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--encode-batch", type=int, help="pictures or texts of a batch")
    parser.add_argument("--train-batch", type=int, help="pairs of a batch")
    parser.add_argument("--context-length", type=int, default=52)
    parser.add_argument("--warmup", type=int, default=5, help="rounds that are not measured")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--alternations", type=int, default=2)
    parser.add_argument("--contenders", nargs="+", default=["ours", "torch", "compiled"])
    parser.add_argument("--output", default="results.json")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    args = arguments()
    if args.peer:
        print(json.dumps(peer(json.loads(args.peer))))
        return
    import torch

    device = torch.cuda.get_device_name() if args.device == "cuda" else "processor"
    cases = [case for model in args.models for case in cases_of(args, model)]
    results = {"device": device, "context_length": args.context_length,
               "torch": torch.__version__, "cases": cases}
    for case in cases:
        for _ in range(args.alternations):
            for contender in args.contenders:
                print(describe(case), contender, file=sys.stderr)
                join(case["measured"], contender, measure(args, case, contender))
        # What has been measured survives an interruption.
        with open(args.output + ".part", "w") as file:
            json.dump(results, file, indent=1)
        os.replace(args.output + ".part", args.output)


def describe(case):
    return "{model} {kind} batch {batch} mask {mask_ratio} {checkpointing}".format(**case)


def cases_of(args, model):
    path = model if model.endswith(".json") else os.path.join(HERE, "configs", model + ".json")
    name = os.path.basename(path)[: -len(".json")]
    with open(path) as file:
        config = json.load(file)
    encode, train = BATCHES.get(name, (8, 8))
    encode, train = args.encode_batch or encode, args.train_batch or train
    plain = [("encode-image", encode), ("encode-text", encode), ("train-step", train)]
    kinds = [(kind, batch, 0.0, False) for kind, batch in plain]
    kinds += [("train-step", train, 0.5, False), ("train-step", train, 0.0, True)]
    return [
        {"model": name, "path": path, "config": config, "kind": kind, "batch": batch,
         "mask_ratio": mask, "checkpointing": checkpointing, "measured": {}}
        for kind, batch, mask, checkpointing in kinds
    ]


def measure(args, case, contender):
    if contender == "ours":
        command = [
            args.binary, "bench", "--json", "--case", case["kind"],
            "--vision-model", case["path"], "--text-model", case["path"],
            "--batch", str(case["batch"]), "--context-length", str(args.context_length),
            "--mask-ratio", str(case["mask_ratio"]), "--precision", args.precision,
            "--warmup", str(args.warmup), "--rounds", str(args.rounds), "--device", args.device,
        ]
        command += ["--grad-checkpointing"] if case["checkpointing"] else []
    else:
        keys = ["config", "kind", "batch", "mask_ratio", "checkpointing"]
        task = {key: case[key] for key in keys}
        task |= {key: getattr(args, key) for key in ["device", "precision", "context_length",
                                                     "warmup", "rounds"]}
        task["compile"] = contender == "compiled"
        command = [sys.executable, os.path.abspath(__file__), "--peer", json.dumps(task)]
    with Memory(args.device) as memory:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        message = lines[-1] if lines else "ended with status %d" % done.returncode
        return {"error": message[:200].replace("|", " ")}
    found = json.loads(done.stdout.splitlines()[-1])
    mib = memory.most if args.device == "cuda" else found["peak_mib"]
    return {"seconds": found["seconds"], "memory_mib": mib, "attention": found.get("attention")}


def join(measured, contender, found):
    before = measured.setdefault(contender, found)
    if before is found:
        return
    if "error" in found:
        before["error"] = found["error"]
        return
    before["seconds"] = before.get("seconds", []) + found["seconds"]
    known = [mib for mib in (before.get("memory_mib"), found["memory_mib"]) if mib is not None]
    before["memory_mib"] = max(known, default=None)


class Memory:
    """The most memory of the device that is in use meanwhile, beyond what was at first."""

    def __init__(self, device):
        self.polls = device == "cuda"
        self.most = None

    def used(self):
        query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i",
                 os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]]
        try:
            return float(subprocess.run(query, stdout=subprocess.PIPE, text=True).stdout)
        except (OSError, ValueError):
            return None

    def poll(self):
        while not self.stop.wait(0.1):
            used = self.used()
            if used is not None:
                self.most = max(self.most or 0.0, used - self.first)

    def __enter__(self):
        self.first = self.used() if self.polls else None
        if self.first is not None:
            self.stop = threading.Event()
            self.thread = threading.Thread(target=self.poll)
            self.thread.start()
        return self

    def __exit__(self, *_):
        if self.first is not None:
            self.stop.set()
            self.thread.join()


def build(config):
    """ChineseCLIPModel of a configuration in the official keys, with random weights."""
    from transformers import ChineseCLIPConfig, ChineseCLIPModel
    from transformers.models.chinese_clip import modeling_chinese_clip

    width = config["vision_width"]
    vision = {
        "hidden_size": width, "intermediate_size": 4 * width,
        "num_hidden_layers": config["vision_layers"],
        "num_attention_heads": width // config.get("vision_head_width", 64),
        "image_size": config["image_resolution"], "patch_size": config["vision_patch_size"],
        "hidden_act": "quick_gelu", "projection_dim": config["embed_dim"],
    }
    text = {
        "vocab_size": config["vocab_size"], "hidden_size": config["text_hidden_size"],
        "intermediate_size": config["text_intermediate_size"],
        "num_hidden_layers": config["text_num_hidden_layers"],
        "num_attention_heads": config["text_num_attention_heads"],
        "max_position_embeddings": config["text_max_position_embeddings"],
        "type_vocab_size": config["text_type_vocab_size"],
        "hidden_dropout_prob": config["text_hidden_dropout_prob"],
        "attention_probs_dropout_prob": config["text_attention_probs_dropout_prob"],
        "hidden_act": config["text_hidden_act"],
    }
    config = ChineseCLIPConfig(text_config=text, vision_config=vision,
                               projection_dim=config["embed_dim"])
    model = ChineseCLIPModel(config)
    # The model does not declare SDPA, but from some version on its layers ask their configuration.
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = "sdpa"
    return model, "SDPA" if hasattr(modeling_chinese_clip, "ALL_ATTENTION_FUNCTIONS") else "eager"


def mask_patches(model, ratio):
    """FLIP: embeddings of a random share of the patches are dropped."""
    import torch

    embeddings = model.vision_model.embeddings
    whole = embeddings.forward

    def masked(*args, **kwargs):
        x = whole(*args, **kwargs)
        rest = x.shape[1] - 1
        noise = torch.rand(x.shape[0], rest, device=x.device)
        keep = noise.argsort(1)[:, : int(rest * (1 - ratio))] + 1
        kept = x.gather(1, keep[:, :, None].expand(-1, -1, x.shape[2]))
        return torch.cat([x[:, :1], kept], 1)

    embeddings.forward = masked


def peer(task):
    import torch
    from torch.nn.functional import normalize

    torch.manual_seed(0)
    device = task["device"]
    bf16 = task["precision"] == "bf16"
    model, attention = build(task["config"])
    model = model.to(device)
    side = task["config"]["image_resolution"]
    # In memory of the host, as a loader leaves them.
    pixels = torch.rand(task["batch"], 3, side, side) * 2 - 1
    tokens = torch.randint(1, task["config"]["vocab_size"],
                           (task["batch"], task["context_length"]))
    mask = torch.ones_like(tokens)

    if task["kind"] == "train-step":
        run = train(torch, model, task, (pixels, tokens, mask), bf16)
    else:
        model = model.eval().to(torch.bfloat16 if bf16 else torch.float32)
        pixels, tokens, mask = pixels.to(device), tokens.to(device), mask.to(device)

        def encode(pixels, tokens, mask):
            if task["kind"] == "encode-image":
                found = model.get_image_features(pixel_values=pixels.to(model.dtype))
                found = getattr(found, "pooler_output", found)
            else:
                # Versions of transformers have a get_text_features that fails for this model.
                hidden = model.text_model(input_ids=tokens, attention_mask=mask)
                found = model.text_projection(hidden.last_hidden_state[:, 0])
            return normalize(found.float(), dim=-1)

        encode = torch.compile(encode) if task["compile"] else encode

        def run():
            with torch.inference_mode():
                encode(pixels, tokens, mask).cpu()

    seconds = []
    for _ in range(task["warmup"] + task["rounds"]):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds[task["warmup"]:], "peak_mib": peak, "attention": attention}


def train(torch, model, task, batch, bf16):
    model.train()
    if task["mask_ratio"] > 0:
        mask_patches(model, task["mask_ratio"])
    if task["checkpointing"]:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.98), eps=1e-6,
                                  weight_decay=0.2, fused=task["device"] == "cuda")

    def loss_of(pixels, tokens, mask):
        return model(pixel_values=pixels, input_ids=tokens, attention_mask=mask,
                     return_loss=True).loss

    loss_of = torch.compile(loss_of) if task["compile"] else loss_of

    def run():
        pixels, tokens, mask = (part.to(task["device"]) for part in batch)
        optimizer.zero_grad()
        with torch.autocast(task["device"], torch.bfloat16, enabled=bf16):
            loss = loss_of(pixels, tokens, mask)
        loss.backward()
        optimizer.step()
        loss.item()

    return run


main()

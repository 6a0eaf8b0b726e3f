"""Rates of cn-clip and of PyTorch's ChineseCLIPModel on one device, in turns in one run.

Writes the seconds of every round and the memory of the device as JSON, which `cn-clip-bench
gpu-bench report` turns into a table."""

import argparse
import json
import os
import statistics
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
    parser.add_argument("--kinds", nargs="+", default=["encode-image", "encode-text", "train-step"])
    parser.add_argument("--output", default="results.json")
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    args = arguments()
    if args.peer:
        serve()
        return
    cases = [case for model in args.models for case in cases_of(args, model)]
    server = Server(args.device)
    about = server.ask({"about": args.device})
    if "error" in about:
        sys.exit(about["error"])
    results = {**about, "context_length": args.context_length, "cases": cases}
    for case in cases:
        for _ in range(args.alternations):
            for contender in args.contenders:
                print(describe(case), contender, file=sys.stderr, flush=True)
                found = ours(args, case) if contender == "ours" else \
                    theirs(args, case, contender, server)
                print(summary(case, found), file=sys.stderr, flush=True)
                join(case["measured"], contender, found)
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
        for kind, batch, mask, checkpointing in kinds if kind in args.kinds
    ]


def summary(case, found):
    if "error" in found:
        return "  " + found["error"]
    seconds = statistics.median(found["seconds"])
    return "  %.4f s, %.1f per second, %s MiB, first pass %.1f s" % (
        seconds, case["batch"] / seconds, found["memory_mib"], found["first_pass"])


def ours(args, case):
    command = [
        args.binary, "bench", "--json", "--case", case["kind"],
        "--vision-model", case["path"], "--text-model", case["path"],
        "--batch", str(case["batch"]), "--context-length", str(args.context_length),
        "--mask-ratio", str(case["mask_ratio"]), "--precision", args.precision,
        "--warmup", str(args.warmup), "--rounds", str(args.rounds), "--device", args.device,
    ]
    command += ["--grad-checkpointing"] if case["checkpointing"] else []
    with Memory(args.device) as memory:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return failure(lines[-1] if lines else "ended with status %d" % done.returncode)
    found = json.loads(done.stdout.splitlines()[-1])
    found["memory_mib"] = memory.most if args.device == "cuda" else found.pop("peak_mib")
    return found


def failure(message):
    """Fits a cell of the table."""
    return {"error": message[:200].replace("|", " ")}


def theirs(args, case, contender, server):
    keys = ["config", "kind", "batch", "mask_ratio", "checkpointing"]
    task = {key: case[key] for key in keys}
    task |= {key: getattr(args, key) for key in ["device", "precision", "context_length",
                                                 "warmup", "rounds"]}
    task["compile"] = contender == "compiled"
    with Memory(args.device, server.before) as memory:
        found = server.ask(task)
    if "error" not in found and args.device == "cuda":
        found["memory_mib"] = memory.most
    return found


class Server:
    """One process for all of PyTorch's cases, as importing it takes longer than most of them. What a
    case leaves behind is freed before the next."""

    def __init__(self, device):
        self.before = Memory(device).used() if device == "cuda" else None
        command = [sys.executable, os.path.abspath(__file__), "--peer"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True)

    def ask(self, task):
        try:
            self.process.stdin.write(json.dumps(task) + "\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())
        except (OSError, ValueError):
            self.process.kill()
            return failure("the process of PyTorch ended with status %s" % self.process.wait())


def serve():
    """Answers the tasks of standard input, a line each."""
    import gc
    import torch

    # Answers only, whatever libraries print.
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        task = json.loads(line)
        if "about" in task:
            name = torch.cuda.get_device_name() if task["about"] == "cuda" else "processor"
            answer = {"device": name, "torch": torch.__version__}
        else:
            try:
                answer = peer(task)
            except Exception as error:
                lines = str(error).strip().splitlines()
                answer = failure(lines[0] if lines else type(error).__name__)
            torch._dynamo.reset()
            gc.collect()
            if task["device"] == "cuda":
                torch.cuda.empty_cache()
        print(json.dumps(answer), file=answers, flush=True)


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

    def __init__(self, device, first=None):
        self.polls = device == "cuda"
        self.first = first
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
        if self.first is None and self.polls:
            self.first = self.used()
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
    with torch.device(device):
        model, attention = build(task["config"])
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
    # On a processor the process has the memory of all cases so far: none of this one.
    return {"seconds": seconds[task["warmup"]:], "first_pass": seconds[0], "memory_mib": None,
            "attention": attention}


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

"""Exact search by FAISS on the files of `cargo xtask bench-search`."""

import argparse
import json
import time

import faiss
import numpy

import memory


def read(path, key):
    if path.endswith(".npy"):
        values = numpy.load(path, mmap_mode="r")
        return numpy.arange(len(values)), values
    with open(path) as file:
        lines = [json.loads(line) for line in file]
    ids = numpy.array([line[key] for line in lines])
    return ids, numpy.array([line["feature"] for line in lines], dtype=numpy.float32)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--queries", required=True)
    parser.add_argument("--candidates", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--top-k", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    faiss.omp_set_num_threads(args.threads)
    query_ids, queries = read(args.queries, "text_id")
    ids, candidates = read(args.candidates, "image_id")
    index = faiss.IndexFlatIP(candidates.shape[1])
    for start in range(0, len(candidates), 65536):
        index.add(numpy.ascontiguousarray(candidates[start : start + 65536]))
    queries = numpy.ascontiguousarray(queries)
    start = time.perf_counter()
    _, found = index.search(queries, args.top_k)
    seconds = time.perf_counter() - start
    with open(args.output, "w") as file:
        for query, row in zip(query_ids, found):
            line = {"text_id": int(query), "image_ids": [int(ids[hit]) for hit in row]}
            file.write(json.dumps(line) + "\n")
    print(json.dumps({"seconds": [seconds], "peak_mib": memory.peak_mib()}))


main()

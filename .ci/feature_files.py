"""Reads the feature files of every form with the programs they are for, and compares them.

Usage: feature_files.py FOLDER, which holds i.jsonl, i.npy, i.ids.jsonl, i.safetensors and i.parquet
of the same pictures.
"""

import json
import sys
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load_file

folder = Path(sys.argv[1])
lines = [json.loads(line) for line in open(folder / "i.jsonl", encoding="utf-8")]
ids = [line["image_id"] for line in lines]
features = np.array([line["feature"] for line in lines], dtype=np.float32)
mixed = any(isinstance(value, str) for value in ids)
assert len(ids) > 1 and np.allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)

array = np.load(folder / "i.npy", mmap_mode="r", allow_pickle=False)
assert array.dtype == np.float32 and np.array_equal(array, features)
assert [json.loads(line) for line in open(folder / "i.ids.jsonl", encoding="utf-8")] == ids

tensors = load_file(folder / "i.safetensors")
assert np.array_equal(tensors["features"], features)
if mixed:
    assert [json.loads(line) for line in tensors["ids"].tobytes().splitlines()] == ids
else:
    assert tensors["ids"].dtype == np.int64 and tensors["ids"].tolist() == ids

table = pq.read_table(folder / "i.parquet")
assert table.schema.field("feature").type.equals(pa.list_(pa.field("element", pa.float32(), False), features.shape[1])), table.schema
assert table.column("image_id").to_pylist() == [str(value) if mixed else value for value in ids]
flat = table.column("feature").combine_chunks().flatten().to_numpy()
assert np.array_equal(flat.reshape(features.shape), features)

dim = features.shape[1]
query = features[3].tolist()
(best,) = duckdb.execute(
    f"SELECT image_id FROM '{folder}/i.parquet' "
    f"ORDER BY array_inner_product(feature::FLOAT[{dim}], ?::FLOAT[{dim}]) DESC LIMIT 1",
    [query],
).fetchone()
scores = features @ features[3]
assert best == table.column("image_id")[int(scores.argmax())].as_py()
print(f"{len(ids)} features of {dim} values are the same in jsonl, npy, safetensors and parquet")

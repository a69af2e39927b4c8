"""A small GPT on real text, from the text to a version in the catalogue, and some words of its own.

    python workflows/gpt/run.py [FOLDER] [--text FILE] [--ranks 2] [--quick]

Run again, it resumes what is there; README.md beside this file shows the same as commands.
"""

from __future__ import annotations

import argparse
import lzma
import math
import os
import sys
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])

import numpy as np
import torch
from prepare import VOCABULARY, write_blocks

import hpcmass
from hpcmass.cli import console
from hpcmass.config import Project
from hpcmass.errors import HpcmassError
from hpcmass.workflow import api

HERE = Path(__file__).resolve().parent
# Stretches of the text: what is tested is nowhere beside what was trained on.
CUT = {"strategy": "contiguous", "splits": {"train": 0.8, "valid": 0.1, "test": 0.1}, "shards": 2}
QUICK_TEXT = {"context": 64, "characters": 100_000}
QUICK = ["params.layers=2", "params.width=64", "params.dropout=0.0", "train.epochs=3", "train.lr=4e-3",
         "resources.threads_per_rank=1"]  # fmt: skip


def shard_text(project: Project, text: Path | None, quick: bool) -> None:
    """The text → blocks → HDF5 shards."""
    if (project.data / "text").exists():
        print("resumed: data/text is there already")
        return
    raw = project.data / "text.npz"
    if not raw.exists():
        write_blocks(raw, text, **(QUICK_TEXT if quick else {}))
    for where, manifest in api.shard([str(raw)], project.data / "text", input_fields=["text"], **CUT):
        (size,) = manifest.fields[0].shape
        print(f"{console.relative(where)}: {manifest.samples} blocks of {size - 1} characters")


def split_text(project: Project, split: str) -> bytes:
    """The characters of a split that are predicted."""
    dataset = hpcmass.open_dataset(project.data / "text" / split)
    blocks: np.ndarray = dataset.batch(np.arange(len(dataset)))["text"]
    return blocks[:, 1:].tobytes()


def ngram_bits(train: bytes, test: bytes, order: int) -> float:
    """Bits a character of counts of `order` characters, each interpolated with the next shorter one.

    The weight is that of Witten and Bell (IEEE Trans. Inf. Theory 37, 1991): as many pseudo-counts as different
    characters followed.
    """
    counts = [
        Counter(train[i : i + size] for i in range(len(train) - size + 1)) for size in range(1, order + 1)
    ]
    seen = [Counter(gram[:-1] for gram in table) for table in counts]  # different successors of a context
    total = [Counter[bytes]() for _ in counts]
    for table, sums in zip(counts, total, strict=True):
        for gram, count in table.items():
            sums[gram[:-1]] += count
    nats = 0.0
    for i in range(order - 1, len(test)):
        p = 1 / VOCABULARY
        for size in range(1, order + 1):
            gram = test[i + 1 - size : i + 1]
            context = gram[:-1]
            if total[size - 1][context]:
                kinds = seen[size - 1][context]
                p = (counts[size - 1][gram] + kinds * p) / (total[size - 1][context] + kinds)
        nats -= math.log(p)
    return nats / math.log(2) / (len(test) - order + 1)


def baselines(project: Project) -> dict[str, float]:
    """Bits a character of the test text, by means that need no network."""
    train, test = split_text(project, "train"), split_text(project, "test")
    bits = 8 / len(test)
    return {
        "every character alike": math.log2(VOCABULARY),
        "frequencies of characters": ngram_bits(train, test, 1),
        "pairs of characters": ngram_bits(train, test, 2),
        "triples of characters": ngram_bits(train, test, 3),
        "gzip -9": bits * len(zlib.compress(test, 9)),
        "xz, which has read the training text": bits
        * (len(lzma.compress(train + test)) - len(lzma.compress(train))),
    }


def write_on(model: Any, prompt: str, length: int, temperature: float = 0.7, seed: int = 0) -> str:
    """The prompt and what the model writes after it, drawn character by character."""
    context = model.signature.inputs[0].shape[0] - 1
    codes, rng = list(prompt.encode("ascii")), np.random.default_rng(seed)
    for _ in range(length):
        window = codes[-context:]
        block = np.zeros((1, context + 1), np.uint8)
        block[0, : len(window)] = window  # what stands behind a character does not reach it
        logits = model(block)[0, len(window) - 1].astype(np.float64) / temperature
        shares = np.exp(logits - logits.max())
        codes.append(int(rng.choice(VOCABULARY, p=shares / shares.sum())))
    return bytes(codes).decode("ascii")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("gpt"), help="the project [%(default)s]")
    parser.add_argument("--text", type=Path, metavar="FILE", help="another text, gzipped or not")
    parser.add_argument("--ranks", type=int, default=1, help="ranks of the training [%(default)s]")
    parser.add_argument("--quick", action="store_true", help="a smaller model on 100,000 characters")
    arguments, began = parser.parse_args(), time.monotonic()
    project = api.make_project(arguments.folder)
    print("[1/4] the text into HDF5 shards, a block of characters a sample")
    shard_text(project, arguments.text, arguments.quick)
    print(
        f"\n[2/4] the GPT, on {arguments.ranks} ranks" if arguments.ranks > 1 else "\n[2/4] the GPT", flush=True
    )
    run, status = hpcmass.train_job(HERE / "job.toml", project=project, ranks=arguments.ranks,
                                    sets=QUICK if arguments.quick else ())  # fmt: skip
    if status.state.value != "COMPLETED":
        sys.exit(f"the run ended as {status.state.value}: {status.reason}\n  see: hpcmass why {run.path}")
    print("\n[3/4] the untouched end of the text", flush=True)
    evaluation = api.evaluate_model(run.path, project.data / "text" / "test", project)
    bits = {**baselines(project), "the GPT": evaluation.metrics["bits_per_char"].value}
    console.table([(name, f"{value:.2f}") for name, value in bits.items()], ["test text", "bits a character"])
    print(evaluation.headline("test"))
    version = api.keep_run(run, project, evaluation=evaluation, why="workflows/gpt/run.py")
    print(f"\n[4/4] {version.ref} is {version.name}@production; what it writes:\n")
    torch.set_num_threads(1)  # one block at a time: a second thread would only wait
    print(write_on(hpcmass.load(f"{version.name}@production", project=project), "The ", 400))
    print(f"\ndone in {time.monotonic() - began:.0f} s; everything lies in {console.relative(project.root)}/")


if __name__ == "__main__":
    try:
        main()
    except HpcmassError as error:
        sys.exit(f"error: {error}")

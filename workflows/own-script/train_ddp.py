"""PyTorch's plain DDP idiom, reading shards with `hpcmass.open_dataset` through torch's own DataLoader."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

import hpcmass


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True, help="a dataset with the splits train and valid")
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32, help="samples a rank and step")
    args = parser.parse_args()

    dist.init_process_group("gloo")
    torch.manual_seed(0)

    train = hpcmass.open_dataset(args.data / "train")
    valid = hpcmass.open_dataset(args.data / "valid")
    sampler = DistributedSampler(train, seed=0)
    loader = DataLoader(train, batch_size=args.batch, sampler=sampler)

    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    model = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)
    step = 0
    for epoch in range(args.epochs):
        sampler.set_epoch(epoch)
        for batch in loader:
            loss = nn.functional.cross_entropy(model(batch["image"]), batch["label"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
        right = 0
        with torch.no_grad():
            for arrays in valid.batches(256):
                outputs = net(torch.from_numpy(arrays["image"]))
                right += int((outputs.argmax(1) == torch.from_numpy(arrays["label"])).sum())
        hpcmass.report(step, loss=loss, accuracy=right / len(valid))
        if dist.get_rank() == 0:
            print(f"epoch {epoch + 1} step {step} accuracy {right / len(valid):.3f}", flush=True)
    # Gloo's threads let go of the last tensor meanwhile: Python aborts if it ends before them (pytorch#179291).
    time.sleep(1.0)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

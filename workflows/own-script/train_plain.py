"""PyTorch's plain DDP idiom on scikit-learn's digits; of hpcmass only `report`, and that may be left out.

Started by `hpcmass run`, by torchrun, or alone (one process): the same script.
"""

from __future__ import annotations

import argparse
import os

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

try:
    from hpcmass import report, should_stop
except ImportError:  # the script runs without hpcmass too

    def report(step: int, **metrics: float) -> None:
        print(step, metrics)

    def should_stop() -> bool:
        return False


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32, help="samples a rank and step")
    args = parser.parse_args()

    for name, alone in {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
    }.items():
        os.environ.setdefault(name, alone)
    dist.init_process_group("gloo")
    # The flag to stop goes through a group of its own: its threads have ended when it is given back, and with
    # them all that held the flag. Those of a group that DDP had outlive it, and Python aborts where one lets go
    # of a tensor of Python's while it ends (pytorch#179291); what DDP sends are none.
    flags = dist.new_group()
    torch.manual_seed(0)

    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32) / 16
    y = torch.tensor(labels, dtype=torch.int64)
    train, valid = TensorDataset(x[:1400], y[:1400]), (x[1400:], y[1400:])
    sampler = DistributedSampler(train, seed=0)
    loader = DataLoader(train, batch_size=args.batch, sampler=sampler)

    net = nn.Sequential(nn.Linear(64, args.hidden), nn.ReLU(), nn.Linear(args.hidden, 10))
    model = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)
    step = 0
    for epoch in range(args.epochs):
        sampler.set_epoch(epoch)
        for inputs, targets in loader:
            loss = nn.functional.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
        with torch.no_grad():
            outputs = net(valid[0])
        accuracy = (outputs.argmax(1) == valid[1]).float().mean()
        report(step, loss=nn.functional.cross_entropy(outputs, valid[1]), accuracy=accuracy)
        if dist.get_rank() == 0:
            print(f"epoch {epoch + 1} step {step} accuracy {accuracy:.3f}", flush=True)
        # Rank 0 asks for all: ranks that saw the answer change at different steps would wait for each other.
        stop = torch.tensor(int(should_stop()))
        dist.broadcast(stop, 0, group=flags)
        if stop:
            break
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

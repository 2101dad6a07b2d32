"""A unit: walk its nodes, parents first, and train them in packs. There is no other training loop.

State passes from a node to its children through checkpoints alone, so a fork, a resumed run and one that starts in
another process are the same thing. What happens is told to an event log; nothing here knows of MLflow or Hydra.
"""

import contextlib
import json
import math
import os
import socket
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stagetree import checkpoint, data
from stagetree.config import InputError
from stagetree.events import EventLog
from stagetree.model import Pack, State, initial_state, loss_sums
from stagetree.optimizer import PackOptimizer
from stagetree.plan import Node, Stage, next_pack, prefix_uid
from stagetree.unit import Settings, read_unit

PACK_BYTES = 8 * 2**20
"""Weights of a pack that still train well from a core's caches: at batch 32 8 members of 784-300-10 (0.9 MB each)
were best on a core with 2 MiB L2, 32 of 784-64-64-64-10 (0.24 MB), and none of 3072-2048-1024-64-10 gained."""
LARGEST_PACK = 64


def train_unit(folder: Path, unit_id: str) -> dict[str, Any]:
    """Train what `write_unit` put there, and return its failures as plain data: `{"failed": {uid: reason}}`."""
    nodes, settings = read_unit(Path(folder), unit_id)
    log = EventLog(Path(folder) / "events", unit_id)
    log.append({"kind": "unit", "unit": unit_id, "pid": os.getpid(), "host": socket.gethostname()})
    with contextlib.closing(log):
        failed = _walk(nodes, _Trainer(settings, log))
        log.append({"kind": "unit_done", "unit": unit_id})
    return {"failed": failed}


def _walk(pending: list[Node], trainer: "_Trainer") -> dict[str, str]:
    """Train nodes in packs as their starting states become available."""
    failed: dict[str, str] = {}
    while pending:
        waiting = {node.uid for node in pending if node.epochs}
        ready = [node for node in pending if node.parent not in waiting or node.parent == node.uid]
        chosen = next_pack(ready, trainer.largest_pack)
        for node, reason in trainer.attempt(chosen).items():
            failed[node] = reason
        chosen_ids = set(map(id, chosen))
        pending = [node for node in pending if id(node) not in chosen_ids]
        orphans = [node for node in pending if node.parent in failed]
        while orphans:
            failed |= {node.uid: failed[node.parent] for node in orphans}
            pending = [node for node in pending if node.uid not in failed]
            orphans = [node for node in pending if node.parent in failed]
    return failed


@dataclass
class _Split:
    """A prepared data set on the device, divided."""

    info: data.DataInfo
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    train: Tensor
    val: Tensor

    def batch(self, rows: Tensor, spec: Mapping, *, test: bool = False) -> tuple[Tensor, Tensor]:
        """Gather pictures: index `(..., b)` -> float32 `(..., b, in_features)` and labels `(..., b)`."""
        images, labels = (self.test_images, self.test_labels) if test else (self.train_images, self.train_labels)
        flat = rows.reshape(-1)
        pixels = images.index_select(0, flat).view(*rows.shape, -1)
        return data.to_float(pixels, self.info, spec["mean"], spec["std"]), labels[flat].view(rows.shape)


class _Trainer:
    """Trains packs for one unit; keeps the data on the device between them."""

    def __init__(self, settings: Settings, log: EventLog):
        self.settings = settings
        self.log = log
        self.folder = checkpoint.folder_of(Path(settings.output_dir))
        self._splits: dict[str, _Split] = {}

    def largest_pack(self, shape: str) -> int:
        if self.settings.pack_size != "auto":
            return int(self.settings.pack_size)
        return max(1, min(LARGEST_PACK, PACK_BYTES // (4 * json.loads(shape)["n_params"])))

    def attempt(self, nodes: Sequence[Node]) -> dict[str, str]:
        """Train nodes of one shape side by side; what fails is found by halving the pack.

        Returns:
            The reason for each uid that failed.
        """
        try:
            return self._train(nodes)
        except Exception as error:  # whatever one member does must leave the others finishing
            if len(nodes) > 1:
                half = len(nodes) // 2
                return self.attempt(nodes[:half]) | self.attempt(nodes[half:])
            return {nodes[0].uid: self._fail(nodes[0], f"{type(error).__name__}: {error}", traceback.format_exc())}

    def _fail(self, node: Node, reason: str, trace: str = "") -> str:
        self.log.append({"kind": "failed", "uid": node.uid, "reason": reason, "traceback": trace})
        return reason

    def _split(self, spec: Mapping) -> _Split:
        """Load a data set and divide it, once a unit."""
        key = json.dumps([spec["data"], spec["val_size"], spec["val_seed"], spec["device"]])
        if key not in self._splits:
            arrays = data.load(Path(self.settings.data[spec["data"]]), spec["data"])
            train, val = data.split(arrays.info.n_train, spec["val_size"], spec["val_seed"])
            tensors = (arrays.train_images, arrays.train_labels, arrays.test_images, arrays.test_labels)
            tensors = [torch.from_numpy(array).to(spec["device"]) for array in tensors]
            self._splits[key] = _Split(arrays.info, *tensors, train.to(spec["device"]), val.to(spec["device"]))
        return self._splits[key]

    def _start(self, node: Node, split: _Split, spec: Mapping) -> tuple[list, State, State]:
        """History, weights and optimizer state that a node starts from."""
        if node.parent is None:
            seed = json.loads(node.trunk)["seed"]
            return [], initial_state(seed, split.info.in_features, len(split.info.classes), spec["model"]), {}
        record, weights, state = checkpoint.load(self.folder, node.parent)
        fresh = node.starts_stage and spec["reset_optimizer"]
        return list(record.history), weights, {} if fresh else state

    def _train(self, nodes: Sequence[Node]) -> dict[str, str]:
        spec = json.loads(nodes[0].shape)
        _prepare_device(spec)
        split = self._split(spec)
        starts = [self._start(node, split, spec) for node in nodes]
        histories = [history for history, _, _ in starts]
        trunks = [json.loads(node.trunk) for node in nodes]
        model = {key: spec["model"][key] for key in ("activation", "dropout")}
        pack = Pack([weights for _, weights, _ in starts], **model, device=spec["device"])
        if spec["folded"]:
            optimizer, lr = None, torch.tensor([[[node.lr]] for node in nodes], device=spec["device"])
        else:
            optimizer, lr = PackOptimizer(pack.parameters, [t["optimizer"] for t in trunks], [n.lr for n in nodes]), None
            for k, (_, _, state) in enumerate(starts):
                optimizer.load(k, state)
        self.log.append({"kind": "pack", "uids": [node.uid for node in nodes], "epochs": nodes[0].epochs})

        for node, history, metrics in zip(nodes, histories, self._evaluate_epoch(pack, split, spec), strict=True):
            if node.parent is None and metrics:  # the baseline
                history.append({"epoch": 0, **metrics})
                self.log.append({"kind": "epoch", "uid": node.uid, **history[-1]})
        failed: dict[str, str] = {}
        partials: dict[str, str] = {}
        saved_at = time.monotonic()
        for epoch in range(nodes[0].epochs):
            started = time.perf_counter()
            keys = [(trunk["seed"], node.first_epoch + epoch) for node, trunk in zip(nodes, trunks, strict=True)]
            train_metrics = _train_epoch(pack, optimizer, lr, split, spec, keys)
            val_metrics = self._evaluate_epoch(pack, split, spec)
            seconds = (time.perf_counter() - started) / (len(nodes) - len(failed))
            for node, history, own, val in zip(nodes, histories, train_metrics, val_metrics, strict=True):
                metrics = {**own, **val}
                if node.uid in failed:
                    continue
                if not all(map(math.isfinite, metrics.values())):
                    bad = next(name for name, value in metrics.items() if not math.isfinite(value))
                    number = node.first_epoch + epoch + 1
                    reason = f"{bad} became {metrics[bad]} in epoch {number} (lr {node.lr:g})"
                    failed[node.uid] = self._fail(node, reason)
                    continue
                line = {"epoch": node.first_epoch + epoch + 1, **metrics, "lr": node.lr, "seconds": seconds}
                history.append(line)
                self.log.append({"kind": "epoch", "uid": node.uid, **line})
            if len(failed) == len(nodes):
                return failed
            is_last = epoch == nodes[0].epochs - 1
            if not is_last and time.monotonic() - saved_at >= self.settings.checkpoint_every_s:
                partials = self._save_partials(nodes, pack, optimizer, histories, failed, epoch + 1, partials)
                saved_at = time.monotonic()

        tests = self._evaluate(pack, split, spec, "test") if any(node.final for node in nodes) else [None] * len(nodes)
        for k, node in enumerate(nodes):
            if node.uid not in failed:
                self._save(node.uid, node.parent, k, pack, optimizer, histories[k], tests[k] if node.final else None)
                self.log.append({"kind": "done", "uid": node.uid})
        self._remove_partials(partials)
        return failed

    def _save(self, uid, parent, k, pack, optimizer, history, test) -> None:
        state = optimizer.state(k) if optimizer else {}
        checkpoint.save(
            self.folder, uid, pack.state(k), state, parent=parent, history=tuple(history), test=test
        )  # fmt: skip

    def _save_partials(self, nodes, pack, optimizer, histories, failed, done, old) -> dict[str, str]:
        """Save states within a stage, so that a killed run goes on from there; the ones before go."""
        new = {}
        for k, node in enumerate(nodes):
            if node.uid in failed:
                continue
            reached = node.stages[-1].epochs - node.epochs + done
            uid = prefix_uid(node.trunk, (*node.stages[:-1], Stage(reached, node.lr)))
            if checkpoint.read_record(self.folder, uid) is None:  # another sweep may have ended a run here
                self._save(uid, node.parent, k, pack, optimizer, histories[k], None)
                new[node.uid] = uid
        self._remove_partials(old)
        return new

    def _remove_partials(self, partials: Mapping[str, str]) -> None:
        for uid in partials.values():
            record = checkpoint.read_record(self.folder, uid)
            if record is not None and record.test is None:
                checkpoint.remove(self.folder, uid)

    def _evaluate_epoch(self, pack: Pack, split: _Split, spec: Mapping) -> list[dict[str, float]]:
        """What is evaluated before training and after each epoch, for each member."""
        metrics: list[dict[str, float]] = [{} for _ in range(len(pack))]
        for part in ["val"] * (len(split.val) > 0) + ["test"] * self.settings.test_every_epoch:
            for own, more in zip(metrics, self._evaluate(pack, split, spec, part), strict=True):
                own |= more
        return metrics

    @torch.no_grad()
    def _evaluate(self, pack: Pack, split: _Split, spec: Mapping, part: str) -> list[dict[str, float]]:
        """Mean loss and accuracy of each member on one part: `{"val/loss": ..., "val/acc": ...}`."""
        test = part == "test"
        rows = torch.arange(split.info.n_test, device=split.train.device) if test else split.val
        sums = _Sums(len(pack), split.train.device)
        for first in range(0, len(rows), spec["eval_batch_size"]):
            x, y = split.batch(rows[first : first + spec["eval_batch_size"]], spec, test=test)
            y = y.expand(len(pack), -1)
            with _precision(spec):
                logits = pack.forward(x.expand(len(pack), -1, -1))
            sums.add(logits.float(), y, *loss_sums(logits.float(), y, spec["loss"]))
        return sums.means(part)


class _Sums:
    """Loss and hits of each member, added up on the device; float64, as sums of many terms."""

    def __init__(self, k: int, device: torch.device):
        self._values = torch.zeros(4, k, dtype=torch.float64, device="cpu" if device.type == "mps" else device)

    def add(self, logits: Tensor, labels: Tensor, loss: Tensor, weight: Tensor) -> None:
        hits = (logits.argmax(-1) == labels).sum(1)
        pictures = torch.full_like(hits, labels.shape[1])
        self._values += torch.stack([loss.detach(), weight, hits, pictures]).to(self._values)

    def means(self, part: str) -> list[dict[str, float]]:
        loss, weight, hits, pictures = self._values
        columns = zip((loss / weight).tolist(), (hits / pictures).tolist(), strict=True)
        return [{f"{part}/loss": loss, f"{part}/acc": acc} for loss, acc in columns]


def _train_epoch(
    pack: Pack, optimizer: PackOptimizer | None, lr: Tensor | None, split: _Split, spec: Mapping,
    keys: Sequence[tuple[int, int]],
) -> list[dict[str, float]]:  # fmt: skip
    """Train one epoch, in place, and return each member's mean loss and accuracy over its minibatches.

    Args:
        optimizer: `None` with `lr` given: plain SGD, folded into the backward pass.
        keys: each member's `(seed, epoch)`, which decide the order of its minibatches and its dropout masks.
    """
    distinct = list(dict.fromkeys(keys))
    by_key = [data.generator(seed, epoch, "dropout", split.train.device) for seed, epoch in distinct]
    generators = [by_key[distinct.index(key)] for key in keys]
    if not spec["shuffle"]:
        distinct, owner = distinct[:1], [0] * len(keys)
    else:
        owner = [distinct.index(key) for key in keys]
    orders = torch.stack([
        data.epoch_order(split.train, seed=seed, epoch=epoch, shuffle=spec["shuffle"]) for seed, epoch in distinct
    ])  # fmt: skip
    sums = _Sums(len(pack), split.train.device)
    for first in range(0, orders.shape[1], spec["batch_size"]):
        x, y = split.batch(orders[:, first : first + spec["batch_size"]], spec)
        if len(distinct) == 1:
            x, y = x.expand(len(pack), -1, -1), y.expand(len(pack), -1)
        else:
            x, y = x[owner], y[owner]
        with _precision(spec):
            logits = pack.forward(x, lr=lr, generators=generators)
        logits = logits.float()
        loss, weight = loss_sums(logits, y, spec["loss"])
        total = (loss / weight).sum()  # members do not touch each other: the gradient of each is its own mean's
        if optimizer is None:
            total.backward()
        else:
            optimizer.step(torch.autograd.grad(total, pack.parameters))
        sums.add(logits.detach(), y, loss, weight)
    return sums.means("train")


def _precision(spec: Mapping):
    if spec["precision"] == "bfloat16":
        return torch.autocast(spec["device"], torch.bfloat16)
    return contextlib.nullcontext()


def _prepare_device(spec: Mapping) -> None:
    """Set what is global in torch.

    Raises:
        InputError: this machine lacks the device.
    """
    device = spec["device"]
    available = {"cpu": lambda: True, "cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if not available[device]():
        raise InputError(
            f"trainer.device: got {device}, but torch {torch.__version__} on {socket.gethostname()} does not see one "
            "(trainer.device=cpu trains without)"
        )
    if device == "cpu":
        torch.set_num_threads(spec["threads"])
    torch.backends.cuda.matmul.allow_tf32 = spec["precision"] == "tf32"

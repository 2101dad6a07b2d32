"""The tutorial's training loop in @hydra.main under Hydra's joblib launcher, with MLflow's fluent API."""

import hydra
import mlflow
import torch
from common import datasets, mlp
from omegaconf import DictConfig, OmegaConf
from torch.nn import functional as F
from torch.utils.data import DataLoader


def fit(model, loader, optimizer):
    model.train()
    total = 0.0
    for x, y in loader:
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
    return total / len(loader)


@torch.no_grad()
def evaluate(model, loader):
    model.eval()
    loss = hits = 0.0
    for x, y in loader:
        logits = model(x)
        loss += F.cross_entropy(logits, y, reduction="sum").item()
        hits += (logits.argmax(1) == y).sum().item()
    return loss / len(loader.dataset), hits / len(loader.dataset)


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float:
    torch.set_num_threads(1)  # as many processes as cores
    torch.manual_seed(cfg.seed)
    train, test = datasets(cfg.dataset, cfg.root)
    train_loader = DataLoader(train, batch_size=cfg.batch_size, shuffle=True)
    test_loader = DataLoader(test, batch_size=1024)
    model = mlp(train[0][0], list(cfg.hidden_sizes))
    mlflow.set_tracking_uri(cfg.tracking_uri)
    mlflow.set_experiment("peers")
    with mlflow.start_run():
        mlflow.log_params(OmegaConf.to_container(cfg))
        epoch = 0
        for epochs, lr in zip(cfg.epochs, (cfg.lr_0, cfg.lr_1), strict=True):
            optimizer = getattr(torch.optim, cfg.optimizer)(model.parameters(), lr=lr)
            for _ in range(epochs):
                epoch += 1
                mlflow.log_metrics({"train_loss": fit(model, train_loader, optimizer), "lr": lr}, step=epoch)
        loss, acc = evaluate(model, test_loader)
        mlflow.log_metrics({"test_loss": loss, "test_acc": acc}, step=epoch)
    return acc


if __name__ == "__main__":
    main()

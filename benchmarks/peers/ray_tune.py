"""Ray Tune with a function trainable and a grid search, two trials at a time, recorded by its MLflow callback.

Takes the overrides of the other peers: `lr_0=0.2,0.1 seed=0,1`.
"""

import sys
from pathlib import Path

import torch
import yaml
from common import datasets, mlp
from joblib_loop import evaluate, fit
from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback
from torch.utils.data import DataLoader

SWEPT = ("lr_0", "lr_1", "seed", "optimizer")


def train(config):
    torch.set_num_threads(1)
    torch.manual_seed(config["seed"])
    training, test = datasets(config["dataset"], config["root"])
    loader = DataLoader(training, batch_size=config["batch_size"], shuffle=True)
    model = mlp(training[0][0], config["hidden_sizes"])
    last = sum(config["epochs"])
    epoch = 0
    for epochs, lr in zip(config["epochs"], (config["lr_0"], config["lr_1"]), strict=True):
        optimizer = getattr(torch.optim, config["optimizer"])(model.parameters(), lr=lr)
        for _ in range(epochs):
            epoch += 1
            metrics = {"train_loss": fit(model, loader, optimizer), "lr": lr}
            if epoch == last:
                metrics["test_loss"], metrics["test_acc"] = evaluate(model, DataLoader(test, batch_size=1024))
            tune.report(metrics)


def main() -> None:
    config = yaml.safe_load((Path(__file__).parent / "conf/config.yaml").read_text())
    config = {key: value for key, value in config.items() if key not in ("defaults", "hydra")}
    for word in sys.argv[1:]:
        key, _, text = word.partition("=")
        if key in SWEPT:
            config[key] = tune.grid_search([yaml.safe_load(value) for value in text.split(",")])
        else:
            config[key] = yaml.safe_load(text)
    config["root"] = str(Path(config["root"]).resolve())
    callback = MLflowLoggerCallback(tracking_uri=config.pop("tracking_uri"), experiment_name="peers")
    tuner = tune.Tuner(
        tune.with_resources(train, {"cpu": 1}),
        param_space=config,
        tune_config=tune.TuneConfig(max_concurrent_trials=2),
        run_config=tune.RunConfig(storage_path=str(Path("ray").resolve()), callbacks=[callback], verbose=0),
    )
    results = tuner.fit()
    if results.num_errors:
        sys.exit(f"{results.num_errors} trials failed: {results.errors[0]}")


if __name__ == "__main__":
    main()

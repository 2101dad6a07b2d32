"""Trunks and runs without a configuration."""

from stagetree.tree.runs import Run, Stage, Trunk

DEFAULTS = {
    "data": "d",
    "mean": (),
    "std": (),
    "val_size": 0,
    "val_seed": 0,
    "model": {"hidden_sizes": [8], "activation": "relu", "dropout": 0.0},
    "n_params": 1000,
    "loss": {"name": "cross_entropy", "label_smoothing": 0.0, "class_weights": []},
    "reset_optimizer": True,
    "batch_size": 32,
    "eval_batch_size": 1024,
    "shuffle": True,
    "precision": "float32",
    "device": "cpu",
    "threads": 1,
    "optimizer": {"name": "sgd"},
    "seed": 0,
}


def trunk(**settings) -> Trunk:
    """Make a trunk that differs from `DEFAULTS` in these settings."""
    return Trunk(**DEFAULTS | settings)


def run(*stages: tuple[int, float], **settings) -> Run:
    """Make a run of stages `(epochs, lr)`."""
    return Run(trunk(**settings), tuple(Stage(*stage) for stage in stages))

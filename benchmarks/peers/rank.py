"""The leaderboard of the peers: what MLflow holds, ranked with pandas."""

import sys

import mlflow

mlflow.set_tracking_uri(sys.argv[1])
runs = mlflow.search_runs(experiment_names=["peers"]).rename(columns={"metrics.test_acc": "test_acc"})
runs = runs.sort_values("test_acc", ascending=False, ignore_index=True)
runs.to_csv("leaderboard.csv")
print(runs[["run_id", "test_acc"]].to_string())

"""Hydra plugin: the jobs of any application as Ray tasks."""

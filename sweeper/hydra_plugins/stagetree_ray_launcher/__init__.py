"""A Hydra plugin that runs the jobs of any application as Ray tasks."""

"""Hydra plugin: the sweeper that trains shared schedule prefixes once."""

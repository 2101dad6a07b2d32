"""A Hydra plugin with the sweeper that trains shared schedule prefixes once."""

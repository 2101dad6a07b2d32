"""Sweeps of small image classifiers: shared schedule prefixes, packed training, exact results."""

__version__ = "0.1.0"

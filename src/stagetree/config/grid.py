"""Expand the grid of a sweep as Hydra does, compose it fast by means that are private to Hydra, and check all of it.

The result is that of Hydra's `load_sweep_config`, but the groups are composed once for each distinct choice of groups,
and the effect of a value is determined once (100,000 jobs take 12 s; Hydra takes 60 s for 1,000).
"""

import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from stagetree.config.composition import Job, resolve, source_flags, to_plain
from stagetree.config.overrides import hydra_override
from stagetree.config.schema import Config
from stagetree.config.validation import check
from stagetree.errors import InputError

ERRORS_SHOWN = 20


def compose_grid(config_loader: ConfigLoader, config: DictConfig, arguments: Sequence[str]) -> list[Job]:
    """Expand the grid as Hydra's basic sweeper does, compose each job, and check it.

    Args:
        config_loader: the loader of the running Hydra application.
        config: the configuration composed for the whole sweep, with its `hydra` node; `hydra.sweeper.params` are part
            of the grid.
        arguments: the overrides of the command line, which take precedence over `hydra.sweeper.params`.

    Raises:
        InputError: a job has errors; the message has a line for each distinct one, at most `ERRORS_SHOWN`.
        CompactHydraException: an override cannot be parsed.
    """
    params = OmegaConf.select(config, "hydra.sweeper.params") or {}
    words = [hydra_override(f"{key}={value}") for key, value in params.items()] + list(arguments)
    parser = OverridesParser.create(config_loader=config_loader)
    sweeps = parser.parse_overrides(words)
    for sweep in sweeps:
        if sweep.is_interval_sweep():
            raise InputError(f"{sweep.input_line}: a grid cannot sweep an interval (list the values: a,b,c)")
    grid = BasicSweeper.split_arguments(sweeps, max_batch_size=None)[0]
    if not grid:
        raise InputError(f"{' '.join(words)}: the grid is empty, since one of its lists of values is")

    words = dict.fromkeys(word for point in grid for word in point)
    parsed = dict(zip(words, parser.parse_overrides(list(words)), strict=True))
    is_value = _find_value_test(config_loader, config)
    values = {word: override for word, override in parsed.items() if is_value(override)}
    by_groups: dict[tuple[str, ...], list[int]] = {}
    for position, point in enumerate(grid):
        by_groups.setdefault(tuple(word for word in point if word not in values), []).append(position)

    flags = source_flags(config.hydra)
    jobs: dict[int, Job] = {}
    errors: dict[str, list[int]] = {}
    outer = HydraConfig.instance().cfg
    try:
        for groups, positions in by_groups.items():
            try:
                base = _Base(config_loader, config, groups)
            except CompactHydraException as error:
                errors.setdefault(_describe(error), []).extend(positions)
                continue
            for position in positions:
                point = grid[position]
                try:
                    chosen = [values[word] for word in point if word in values]
                    jobs[position] = Job(tuple(point), base.job(chosen), flags)
                except CompactHydraException as error:
                    errors.setdefault(_describe(error), []).append(position)
                except InputError as error:
                    for line in str(error).splitlines():
                        errors.setdefault(line, []).append(position)
    finally:
        HydraConfig.instance().cfg = outer
    if errors:
        raise InputError(_summarise({text: [grid[p] for p in where] for text, where in errors.items()}, grid))
    return [jobs[position] for position in range(len(grid))]


def _find_value_test(config_loader: ConfigLoader, config: DictConfig) -> Callable[[Override], bool]:
    """Tell overrides of plain values from those that decide which files are composed."""
    if not hasattr(config_loader, "_apply_overrides_to_config"):  # private to Hydra: without it, compose each job whole
        return lambda override: False
    name = config.hydra.job.config_name
    hydra_overrides = list(config.hydra.overrides.hydra)
    is_group: dict[str, bool] = {}

    def is_value(override: Override) -> bool:
        key = override.key_or_group
        if override.package is not None or override.is_hydra_override():
            return False
        if key not in is_group:
            options = config_loader.get_group_options(
                key, results_filter=None, config_name=name, overrides=hydra_overrides
            )
            is_group[key] = bool(options)
        return not is_group[key]

    return is_value


class _Base:
    """Composes the jobs of one choice of groups, which differ in values alone.

    Hydra determines the effect of each value once. If the effect is one changed setting, and no setting refers to
    another, jobs are put together from plain values: ten times faster than by Hydra on a copy for each.

    Args:
        config_loader: the loader of the running Hydra application.
        config: the configuration composed for the whole sweep.
        groups: the overrides that choose the groups.
    """

    def __init__(self, config_loader: ConfigLoader, config: DictConfig, groups: Sequence[str]):
        base = config_loader.load_sweep_config(config, list(groups))
        HydraConfig.instance().set_config(base)  # ${hydra:...} reads it while the jobs are resolved
        with flag_override(base, ["struct", "readonly"], [False, False]):
            del base["hydra"]
        self._loader: Any = config_loader  # `_apply_overrides_to_config` is private to Hydra's own
        self._pickled = pickle.dumps(base)
        self._missing = {tuple(key.split(".")) for key in OmegaConf.missing_keys(base)}
        self._plain = _find_plain(base)
        self._effects: dict[str, tuple[tuple[str, ...], Any] | None] = {}

    def job(self, values: Sequence[Override]) -> Config:
        """Compose and check one job.

        Raises:
            CompactHydraException: a value cannot be set.
            InputError: the configuration has errors; the message has a line for each.
        """
        plain = self._plain
        effects = [effect for value in values if plain is not None and (effect := self._effect(value))]
        if plain is not None and len(effects) == len(values):
            paths = [path for path, _ in effects]
            if _are_apart(paths) and self._missing <= set(paths):
                for path, value in effects:
                    plain = _replace(plain, path, value)
                return check(plain)
        return resolve(self._changed(values))

    def _changed(self, values: Sequence[Override]) -> DictConfig:
        job = pickle.loads(self._pickled)  # ten times faster than deepcopy
        if values:
            self._loader._apply_overrides_to_config(list(values), job)
        return job

    def _effect(self, value: Override) -> tuple[tuple[str, ...], Any] | None:
        """Find the path that a value sets, and the value there; `None` if it does more than to set one setting."""
        word = value.input_line or ""
        if word not in self._effects:
            self._effects[word] = None if _REFERENCE.search(word) else self._find_effect(value)
        return self._effects[word]

    def _find_effect(self, value: Override) -> tuple[tuple[str, ...], Any] | None:
        path = tuple(value.key_or_group.split("."))
        try:
            changed = to_plain(self._changed([value]))
            found: Any = changed
            for part in path:
                found = found[part]
            alone = not isinstance(found, dict) and _replace(self._plain or {}, path, found) == changed
        except (CompactHydraException, OmegaConfBaseException, KeyError, TypeError, ValueError):
            return None
        return (path, found) if alone else None


# A reference to another setting. The environment's and Hydra's own values are the same in all jobs of one choice of
# groups.
_REFERENCE = re.compile(r"\$\{(?!oc\.env:|hydra:)")


def _find_plain(base: DictConfig) -> dict[str, Any] | None:
    """A configuration as plain values; `None` if a setting refers to another, or to something that is not there."""
    if _REFERENCE.search(OmegaConf.to_yaml(base)):
        return None
    try:
        return to_plain(base)
    except OmegaConfBaseException:  # told for each job
        return None


def _are_apart(paths: Sequence[tuple[str, ...]]) -> bool:
    """Return whether no path is equal to, or part of, another."""
    above = {path[:i] for path in paths for i in range(1, len(path))}
    return len(set(paths)) == len(paths) and above.isdisjoint(paths)


def _replace(values: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """Copy values and set one of them; parts that do not lie on its path are shared."""
    first, *rest = path
    return {**values, first: _replace(values[first], rest, value) if rest else value}


def _describe(error: CompactHydraException) -> str:
    """Give the text that Hydra prints for this error."""
    cause = error.__cause__
    return f"{error}\n{cause}" if isinstance(cause, OmegaConfBaseException) else str(error)


def _summarise(errors: dict[str, list[Sequence[str]]], grid: Sequence[Sequence[str]]) -> str:
    """List each error once, with the overrides that tell the jobs that have it from the others."""
    common = set.intersection(*map(set, grid))
    lines = []
    for text, points in list(errors.items())[:ERRORS_SHOWN]:
        shared = set.intersection(*map(set, points)) - common
        where = " ".join(word for word in points[0] if word in shared)
        if len(points) < len(grid) and not where:
            where = f"{len(points)} of {len(grid)} jobs"
        head, *rest = text.split("\n")
        lines.append("\n".join([f"{head} (in {where})" if where else head, *rest]))
    if len(errors) > ERRORS_SHOWN:
        lines.append(f"... and {len(errors) - ERRORS_SHOWN} more errors")
    return "\n".join(lines)

"""The settings of matching methods on a command line, and what there are."""

from __future__ import annotations

import argparse
from typing import Any


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of the method that the command line gives."""
    import yaml

    from metanet.matching.method import find_matcher

    known = find_matcher(options.method).settings
    settings: dict[str, Any] = {}
    if options.start:
        settings["starts"] = tuple(options.start)
    if options.max_sweeps is not None:
        settings["max_sweeps"] = options.max_sweeps
    for item in options.set:
        name, equals, text = item.partition("=")
        if not equals:
            raise ValueError(f"--set {item}: expected NAME=VALUE")
        if name in known and isinstance(known[name].default, str):
            settings[name] = text
            continue
        # YAML reads 1e-3, which lacks a point, as text.
        value = yaml.safe_load(text)
        settings[name] = float(text) if isinstance(value, str) and is_number(text) else value
    return settings


def is_number(text: str) -> bool:
    """Tell whether a text is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def describe_methods() -> str:
    """Return a text about every method and its settings."""
    from metanet.matching.method import MATCHERS, find_matcher

    find_matcher("weights")
    needs = {
        "weights": "the weights alone",
        "inputs": "activations on data",
        "loss": "a loss on labelled data",
    }
    lines: list[str] = []
    for method in MATCHERS.values():
        lines += [f"{method.name}: {method.summary}", f"    {method.reference}"]
        found = "a group element" if method.returns == "element" else "a soft map, which changes the function"
        lines.append(f"    looks at {needs[method.needs]}; finds {found}")
        for name, setting in method.settings.items():
            default = ", ".join(setting.default) if isinstance(setting.default, tuple) else setting.default
            choices = f"; {' or '.join(setting.choices)}" if setting.choices else ""
            lines.append(f"    {name:<20} {setting.doc} (default {default}{choices})")
        lines.append("")
    return "\n".join(lines)

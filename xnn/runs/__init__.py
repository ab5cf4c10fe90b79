"""Runs of `xnn train` and `xnn verify`: their options, networks in TOML files, records, comparison of two runs.

`spec.py` holds the options that determine a run. `mlp.py` builds the default network; `architecture.py`,
`layer_plans.py` and `toml_lines.py` build one from a TOML file. `digests.py` writes records; `replay.py`,
`replay_process.py` and `process.py` compare two runs. `names.py` and `schedule_text.py` read options from text.
"""

__all__ = []

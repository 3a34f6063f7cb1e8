"""Plug-ins of rljax about the length of responses. ``pyproject.toml`` gives them their names."""

"""Settings of every command: dataclasses, their limits, YAML files and shared flags."""

"""Settings of the commands: dataclasses with types and limits, YAML files, and flags that commands share."""

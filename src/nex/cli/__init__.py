"""The `nex` command: one module per noun, imported when called."""

"""The commands, one module per subject; `cli.app` puts them together."""

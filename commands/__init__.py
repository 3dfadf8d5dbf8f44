"""The `modelyard` command line: what a person types, and what `make` calls. May talk to Prefect's API."""

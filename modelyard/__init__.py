"""Modelyard's core: what each stage does, without a word about when or where it runs."""

__version__ = "0.1.0"

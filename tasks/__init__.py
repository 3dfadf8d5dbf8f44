"""Thin Prefect tasks, one file a stage: build the config, call one core function, record it, return a small result.

policy.py      which failures are tried again, and how
session.py     the clients of this process, from its settings
recording.py   what a stage leaves in MLflow and in Prefect
results.py     what a stage returns
"""

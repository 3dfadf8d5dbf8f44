"""The order of stages, read as sentences; one flow a file. What a stage does is in `modelyard`, how it is retried in `tasks`."""

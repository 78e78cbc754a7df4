"""From a scenario's text to records on disk: the reader of scenario files, data, models, training, executor."""

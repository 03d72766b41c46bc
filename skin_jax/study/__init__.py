"""Studies: arms x folds x seeds of one configuration, run as jobs and compared."""

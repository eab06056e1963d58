"""Files: configs, data tables, checkpoints and other stores."""

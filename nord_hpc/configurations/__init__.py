"""NORD's place for what is known of data sets: `nord_hpc.configurations.all.Configs`."""

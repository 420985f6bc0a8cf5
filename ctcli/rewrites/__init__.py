"""The subcommands' work: functions from checkpoint to checkpoint, one file each."""

"""The checks of `ctcli verify`: what a checkpoint should be, and where it is not."""

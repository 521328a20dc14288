"""The text of a command, masked or raw."""

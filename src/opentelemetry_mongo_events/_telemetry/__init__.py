"""What all signals are turned into: providers, instruments, names."""

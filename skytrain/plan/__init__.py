"""What a machine can do: the hardware table."""

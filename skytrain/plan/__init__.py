"""What a run will take, before it starts: memory, time and money, by the hardware table."""

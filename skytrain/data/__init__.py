"""The tokenised data set on disk, chat rendering, packing and the step plan. Never imports torch."""
